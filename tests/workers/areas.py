"""A run of the task of helpers.boxes by however many processes there are."""

import sys

from bit_paddle.runs import logbook  # isort: skip  # before Paddle, as users import the package
import paddle
from helpers.boxes import plan_of

from bit_paddle.system import processes
from bit_paddle.system.signals import Interrupt
from bit_paddle.training import run

logdir, name, split = sys.argv[1:]
processes.end_with_parent()
paddle.set_default_dtype("float64")
plan = plan_of(logdir, name, batch_split=int(split))
plan.start.folder.mkdir(exist_ok=True)
log = logbook.Silent() if processes.rank() else logbook.Logbook(plan.start.folder)
status, _ = run.run(plan, log, Interrupt())
sys.exit(status)
