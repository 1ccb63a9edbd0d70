"""The training of a detector by however many processes there are."""

import json
import sys
from pathlib import Path

from bit_paddle.runs import logbook  # isort: skip  # before Paddle, as users import the package
import paddle

from bit_paddle.config.detection_settings import DetectionSettings
from bit_paddle.runs import folder
from bit_paddle.system import processes
from bit_paddle.system.signals import Interrupt
from bit_paddle.training import run
from bit_paddle.training.detection.plan import make_plan

boxes, logdir, name, values = sys.argv[1:]
processes.end_with_parent()
paddle.set_default_dtype("float64")
settings = DetectionSettings("R14x0.5", boxes, logdir=logdir, name=name, **json.loads(values))
place = Path(logdir, name)
plan = make_plan(settings, folder.Start(place))
place.mkdir(exist_ok=True)
log = logbook.Silent() if processes.rank() else logbook.Logbook(place)
status, _ = run.run(plan, log, Interrupt())
sys.exit(status)
