"""A space of one stage, relays and a few-step student: its files, its genes, and its cards."""

from dataclasses import replace

from support import CARD, SPACE

from stepsearch.core.distilled import Distilled
from stepsearch.core.relay import Relay
from stepsearch.core.space import Range, Relaying, SearchSpace

NET = """\
version: 1
name: net
data: digits
widths: [0.5, 1.0]
net: {family: unet, base: 4, mult: [1, 2], groups: 1}
train: {steps: 3, batch: 16, warmup: 1, checkpoint_every: 2, ema: 0.9}
"""
SMALL = NET.replace("name: net", "name: small").replace(
    "data: digits", "data: {digits, size: 4, resample: box}"
)
SHARP = NET.replace("name: net", "name: sharp") + "relay: {scale: 2, blur: 2.0}\n"
STUDENT = """\
version: 1
name: student
distill: {teacher: net.yaml, steps: 3, batch: 16, warmup: 1, checkpoint_every: 2, high: 20, low: 1}
"""
JOINT = """\
version: 1
name: joint
supernets: [net.yaml, student.yaml]
schedule:
  calls: [2, 3]
  grid: [uniform, quad]
  solver: [ddim, dpmpp_2m]
  widths: {segments: 2, choices: [0.5, 1.0]}
relay:
  first: small.yaml
  second: sharp.yaml
  start: {min: 0.3, max: 1.2, steps: 3}
  calls: [1, 5]
  solver: [{relay: {step: trapezoid, eta: {min: 0, max: 0.4, step: 0.2}}}, {relay: {step: first}}]
  grid: [{karras: {end: {min: 0.02, max: 0.1, steps: 3, log: true}}}]
  widths: {segments: 3, choices: [0.5, 1.0]}
distilled:
  calls: [1, 2]
  grid: [logsnr]
objectives: [fid, gflops_per_image]
evaluation: {images: 64, batch: 64}
search: {population: 8, generations: 2, seed: 1}
"""
FILES = {
    "net.yaml": NET,
    "small.yaml": SMALL,
    "sharp.yaml": SHARP,
    "student.yaml": STUDENT,
    "space.yaml": JOINT,
}


def write_joint(folder, **changed):
    """All files; `changed` are texts by the name of the file without its ending."""
    for name, text in (FILES | {f"{k}.yaml": text for k, text in changed.items()}).items():
        (folder / name).write_text(text)
    return folder


def card(name, **fields):
    """CARD under another name, with another hash and twice the cost of the one before."""
    return replace(CARD, name=name, sha256=name[0].encode().hex() * 32, **fields)


LOW = card("low", image_shape=(1, 4, 4), flops=tuple(n / 4 for n in CARD.flops))
HIGH = card("high", process="edm", prediction="F", relay=Relay(2, 2.0, 0.93, 0.15))
ENDS = tuple(CARD.diffusion.level_at(time) for time in (768, 26))  # about 20 and 0.1
STUDENT_CARD = card("student", distilled=Distilled(CARD.key, ENDS, (0.5, 1.0)))
JOINT_CARDS = {c.name: c for c in (CARD, LOW, HIGH, STUDENT_CARD)}
RELAYING = Relaying(
    firsts=("low",),
    starts=(0.3, 0.6, 1.2),
    space=SearchSpace(
        supernets=("high",),
        calls=(1, 3, 5),
        grids=(("karras", {"end": Range(0.02, 0.1, 3)}), "logsnr"),
        solvers=(
            ("relay", {"step": "trapezoid", "eta": Range(0, 0.4, 3)}),
            ("relay", {"step": "first"}),
        ),
        width_choices=CARD.widths,
        width_genes=2,
    ),
)
FEW = SearchSpace(
    supernets=("student",),
    calls=(1, 2, 4),
    grids=("karras", ("logsnr", {"end": Range(0.2, 1.0, 3)})),
    solvers=("renoise",),
    width_choices=(1.0,),
    width_genes=1,
)
JOINT_SPACE = replace(SPACE, supernets=("net", "low", "student"), relay=RELAYING, distilled=FEW)
