"""What the tests of all hosts name."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
#: The losses of the tests.
NAMES = ("student_loss", "MSELoss_0", "KLDivLoss_1")
