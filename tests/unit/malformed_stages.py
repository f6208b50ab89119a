"""Malformed relays and students, in space files and recipes; see malformed.py for how to read."""

from __future__ import annotations

from joint import JOINT, NET, SHARP, STUDENT
from malformed import GAUSSIAN, edits

OTHERS = {  # recipes that lie beside those of `joint`, each wrong somewhere
    "coupled": NET.replace("ema: 0.9", "ema: 0.9, immiscible: {pool: 16}"),
    "fitted": GAUSSIAN,
    "classifier": NET.replace("unet", "noisy-classifier").replace("[0.5, 1.0]", "[1.0]"),
    "slow": STUDENT,
    "labelled": NET,
}
OTHERS = {name: text.replace("name: net", f"name: {name}") for name, text in OTHERS.items()}
OTHERS["slow"] = STUDENT.replace("name: student", "name: slow")
for _name in ("classifier", "labelled"):
    OTHERS[_name] = OTHERS[_name].replace("groups: 1", "groups: 1, classes: 10")

START, SOLVER = "{min: 0.3, max: 1.2, steps: 3}", "{relay: {step: first}}"
GRID = "[{karras: {end: {min: 0.02, max: 0.1, steps: 3, log: true}}}]"
RELAYS = [
    ("start above the cap", START, "§{min: 0.3, max: 1.9}", "1.9 lies", "0.0075 to 1.77", "within"),
    ("one start above the cap", START, "§[0.5, 1.9]", "1.9 lies outside", "1.77", "within"),
    ("start below the least", START, "§0.001", "0.001 lies outside", "above 0.0075", "within"),
    ("start at the least", START, "§[0.0075, 1]", "0.0075 lies outside", "above 0.0075"),
    ("start twice", START, "[1, §1.0]", "1.0 is listed twice"),
    ("start in words", START, "§soon", "expected a number, got 'soon'"),
    ("start reversed", START, "§{min: 1, max: 0.5}", "min must lie below max"),
    ("first missing", "first: small.yaml\n  second", "§second", "key 'first' is missing"),
    ("first misspelt", "first: small", "§frist: small", "'frist' (did you mean 'first'?)"),
    ("first distilled", "first: small", "first: §student", "'student' is distilled", "teacher"),
    ("first of two stages", "first: small", "first: §sharp", "cannot start from noise", "supernet"),
    ("first classifies", "first: small", "first: §classifier", "'classifier' cannot start"),
    ("first not there", "first: small", "first: §none", "no such recipe at", "start at this file"),
    ("second of one stage", "second: sharp", "second: §small", "was not trained", "relay section"),
    ("second distilled", "second: sharp", "second: §student", "'student' was not", "relay section"),
    ("ddim", SOLVER, "§ddim", "'ddim' does not know the blur", "use relay"),
    ("solver misspelt", SOLVER, "§relya", "unknown solver 'relya' (did you mean 'relay'?)"),
    ("scale", SOLVER, "§{relay: {scale: 2}}", "scale is what the second stage", "leave it out"),
    ("block as a gene", SOLVER, "§{relay: {block: {min: 0, max: 1}}}", "block is", "leave it out"),
    ("step misspelt", SOLVER, "§{relay: {stp: first}}", "'stp' (did you mean 'step'?)"),
    ("step unknown", SOLVER, "§{relay: {step: heun}}", "first, official, trapezoid, got 'heun'"),
    ("eta above 1", SOLVER, "§{relay: {eta: {min: 0, max: 2}}}", "eta must", "[0, 1], got 2"),
    ("even calls", "[1, 5]\n  solver: [{", "[1, 4]\n  solver: [§{", "be odd, got 4", "3 or 5"),
    ("uniform", GRID, "[§uniform]", "'uniform' cannot begin at relay.start", "use karras"),
    ("levels", GRID, "[§[1, 0.1]]", "'explicit' cannot begin at relay.start", "use karras"),
    (
        "start in the grid",
        GRID,
        "[§{karras: {start: 0.5}}]",
        "begins at relay.start",
        "leave it out",
    ),
    ("end above the start", GRID, "[§{karras: {end: 0.4}}]", "start 0.3 must exceed end 0.4"),
    ("end up to", GRID, "[§{free: {end: {min: 0.1, max: 0.4}}}]", "start 0.3 must exceed end 0.4"),
    (
        "end below the least",
        GRID,
        "[§{cosine: {end: 0.001}}]",
        "end 0.001 lies outside",
        "0.0075 .. 1.7",
    ),
    ("width", "3, choices: [0.5, 1.0]", "3, choices: [§0.25]", "'sharp' (it offers 0.5, 1)"),
    ("unknown key", "  second:", "  §seconds: 1\n  second:", "'seconds' (did you mean 'second'?)"),
    ("guidance", "  second:", "  §guidance: none\n  second:", "unknown key 'guidance'"),
]
LISTED = "[net.yaml, student.yaml]"
FEW = "distilled:\n  calls: [1, 2]\n  grid: [logsnr]\n"
GUIDED = "solver: [ddim, dpmpp_2m]\n"
SPACES = [
    ("second under supernets", LISTED, "[net.yaml, student.yaml, §sharp.yaml]", "relay.second"),
    ("classifier as supernet", LISTED, "[student.yaml, §classifier.yaml]", "schedule.guidance"),
    ("no distilled section", FEW, "", "supernet 'student' is distilled", "distilled: {calls:"),
    ("nothing distilled", LISTED, "[net.yaml]", "no supernet is distilled", "remove this"),
    ("relay as a solver of one stage", "[ddim, dpmpp_2m]", "[ddim, §relay]", "unknown solver"),
    ("pfdiff of a student", "grid: [logsnr]", "grid: [logsnr]\n  solver: §pfdiff", "renoise alone"),
    (
        "solver of a student",
        "grid: [logsnr]",
        "grid: [logsnr]\n  solver: §[renoise]",
        "remove this",
    ),
    (
        "widths of a student",
        "grid: [logsnr]",
        "grid: [logsnr]\n  widths: §{segments: 1, choices: [0.5]}",
        "widths were chosen",
        "remove this section",
    ),
    ("end below a student", "[logsnr]", "[§{karras: {end: 0.02}}]", "'student'", "0.99", "within"),
    ("start above a student", "[logsnr]", "[§{logsnr: {start: 30}}]", "19.9605, not at 30"),
    ("levels above a student", "[1, 2]\n  grid: [logsnr]", "[1]\n  grid: [§[30]]", "not at 30"),
    ("range below a student", "[logsnr]", "[§{cosine: {end: {min: 0.5, max: 9}}}]", "at 0.499"),
    ("uniform of a student", "[logsnr]", "[§uniform]", "goes where no student was", "karras"),
    ("key of a student", "grid: [logsnr]", "grid: [logsnr]\n  §step: 1", "unknown key 'step'"),
    ("calls of a student", "[1, 2]", "[§0, 2]", "between 1 and 1000, got 0"),
    (
        "guided by a classifier",
        GUIDED,
        f"{GUIDED}  guidance: {{classifier: {{net: classifier.yaml, scale: 1}}}}\n",
        "images of one size, and a relay has two",
        "guide by cfg",
    ),
    (
        "first listed twice",
        LISTED,
        "[net.yaml, student.yaml, small.yaml]",
        "share a name",
        "or remove it",
    ),
]
TEACHER, HIGH = "teacher: net.yaml", "high: 20, low: 1"
STUDENTS = [
    ("teacher missing", f"{{{TEACHER}, ", "§{", "key 'teacher' is missing"),
    ("steps missing", f"{{{TEACHER}, steps: 3, ", f"§{{{TEACHER}, ", "key 'steps' is missing"),
    ("teacher of coupled noise", TEACHER, "teacher: §coupled.yaml", "pool 16", "plain training"),
    ("teacher fitted", TEACHER, "teacher: §fitted.yaml", "'gaussian', which is fitted", "another"),
    ("teacher classifies", TEACHER, "teacher: §classifier.yaml", "which classifies", "another"),
    ("teacher distilled", TEACHER, "teacher: §slow.yaml", "distilled itself", "distilled from"),
    ("teacher of two stages", TEACHER, "teacher: §sharp.yaml", "second stage", "of one stage"),
    ("teacher not there", TEACHER, "teacher: §none.yaml", "no such recipe", "give --teacher"),
    *(
        (f"{key} of its own", "distill:", f"{key}: §{value}\ndistill:", "that of the teacher")
        for key, value in {
            "data": "digits",
            "net": "{family: unet}",
            "widths": "[1.0]",
            "train": "{steps: 2}",
            "relay": "{scale: 2}",
            "init": "x.safetensors",
        }.items()
    ),
    ("key misspelt", "distill:", "§nmae: x\ndistill:", "'nmae' (did you mean 'name'?)"),
    ("setting misspelt", "warmup", "§warmpu", "'warmpu' (did you mean 'warmup'?)"),
    ("width not offered", HIGH, "widths: §0.25", "0.25 is not", "'net' (it offers 0.5, 1)"),
    ("widths not offered", HIGH, "widths: §[1.0, 0.75]", "0.75 is not", "(it offers 0.5, 1)"),
    ("width in words", HIGH, "widths: §some", "expected a number, got 'some'"),
    ("no widths", HIGH, "widths: §[]", "at least one entry"),
    ("level twice", HIGH, "levels: [9, §9.0]", "9.0 is listed twice"),
    ("levels alike", HIGH, "levels: §[20, 19.9999]", "two mean the same", "leave one out"),
    ("level above", HIGH, "levels: [§500, 1]", "500 lies outside", "0.01 to 157.4", "within"),
    ("high above", HIGH, "high: §200", "200 lies outside", "0.01 to 157.4"),
    ("low below", HIGH, "low: §0.001", "0.001 lies outside", "0.01 to 157.4"),
    ("high below low", HIGH, "high: 1, low: §2", "2.0 is out of range", "below distill.high"),
    ("high like low", HIGH, "high: 20, low: §19.9999", "two mean the same", "leave one out"),
    ("ema 1", HIGH, "ema: §1", "[0, 0.999999], got 1"),
    ("smoothing", HIGH, "smoothing: §tide", "did you mean 'tied'?"),
    ("score updates", HIGH, "score_updates: §0", "between 1 and 100, got 0"),
    ("a list", "{teacher", "§[1]\n#", "a mapping of keys, got a list"),
]
BASE = SHARP.partition("net:")[0]
TRAINED = SHARP[len(BASE) :]
SECONDS = [
    ("noise coupled", "ema: 0.9", "ema: 0.9, immiscible: §{pool: 16}", "coupled to no image"),
    (
        "fitted second",
        TRAINED,
        "net: {family: gaussian, components: 4}\nrelay: §{scale: 2}\n",
        "'gaussian' is no network of a second stage",
    ),
    ("scale 1", "scale: 2", "scale: §1", "between 2 and 64, got 1"),
    ("blur misspelt", "blur: 2.0", "§blr: 2.0", "'blr' (did you mean 'blur'?)"),
    ("all noise", "blur: 2.0", "prob_length: §1.0", "(0, 0.999], got 1.0"),
    ("no noise", "{scale: 2, blur: 2.0", "§{scale: 2, prob_length: 0.001", "no noise", "raise it"),
]

MALFORMED = {
    "space": [*edits(JOINT, RELAYS), *edits(JOINT, SPACES)],
    "student": edits(STUDENT, STUDENTS),
    "sharp": edits(SHARP, SECONDS),
}
