"""What a balancer gave in a step, the golden vectors that say what it must give, and what differs."""
