"""Every message of the library, worded once, so that both twins raise the same class with the same words.

Each function returns the exception (or, for a warning, its text). The code that finds the mistake raises it. A message says what
was expected, what came and what to do, and names the clause that it rests on, if there is one.
"""

# A text is written in one place, and no list repeats its name.
# pyright: reportWildcardImportFromLibrary=false
from loss_balancers.spec.errors.adaptive import *
from loss_balancers.spec.errors.amounts import *
from loss_balancers.spec.errors.calls import *
from loss_balancers.spec.errors.functional import *
from loss_balancers.spec.errors.packaging import *
from loss_balancers.spec.errors.schedules import *
from loss_balancers.spec.errors.settings import *
from loss_balancers.spec.errors.state import *
from loss_balancers.spec.errors.training_loops import *
from loss_balancers.spec.errors.words import *
