"""Malformed settings files: what is wrong, where the message must point, what it must say.

A case replaces one passage of a good file; § marks the place that the message must name. Fragments
are the value and the remedy as a user has to see them.
"""

from __future__ import annotations

from dataclasses import dataclass

SPACE = """\
version: 1
name: toy
supernets: [net.yaml]
schedule:
  calls: [5, 8]
  grid: [uniform, quad]
  solver: [ddim, {pfdiff: {k: 2, l: 1}}]
  widths: {segments: 2, choices: [0.5, 1.0]}
objectives: [fid, gflops_per_image]
constraints: {gflops_per_image: {max: 1}}
evaluation: {images: 100, batch: 50, seed: 0, features: classifier, device: auto}
search: {algorithm: nsga2, population: 8, generations: 2, seed: 0, crossover: 0.9, mutation: 0.1}
"""
UNET = """\
version: 1
name: net
data: digits
widths: [0.5, 1.0]
net: {family: unet, base: 16, mult: [1, 2], blocks: 1, groups: 2}
train: {steps: 2, batch: 8, learning_rate: 1e-3, warmup: 0, ema: 0.9, seed: 0, threads: 1}
"""
GAUSSIAN = """\
version: 1
name: net
data: digits
widths: [0.5, 1.0]
net: {family: gaussian, components: 4}
"""


@dataclass(frozen=True)
class Case:
    """A file's bytes; `line` 0 where the message can name no more than the file."""

    name: str
    data: bytes
    line: int
    column: int
    says: tuple[str, ...]


def whole(name: str, text: str | bytes, *says: str) -> Case:
    """A case that is a whole file."""
    if isinstance(text, bytes):
        return Case(name, text, 0, 0, says)
    before, mark, _ = text.partition("§")
    line = before.count("\n") + 1 if mark else 0
    column = len(before) - (before.rfind("\n") + 1) + 1 if mark else 0
    return Case(name, text.replace("§", "").encode(), line, column, says)


def edits(good: str, rows: list[tuple[str, ...]]) -> list[Case]:
    """Cases (name, passage of the good file, what stands there instead, fragments...)."""
    cases = []
    for name, old, new, *says in rows:
        assert good.count(old) == 1, (name, old)
        cases.append(whole(name, good.replace(old, new), *says))
    return cases


def rung(text: str) -> tuple[str, str]:
    """A passage of the good file, and that passage with a ladder of one rung."""
    return "device:", f"ladder: [{text}], device:"


BOMB = "a: &a [x, x]\nb: &b [§*a, *a]\nc: &c [*b, *b]\nd: &d [*c, *c]\ne: [*d, *d]\n"

# Read with `read_space`; in no case is there more than the file to blame.
SYNTAX = [
    whole("empty file", "", "empty", "stepsearch ls"),
    whole("only comments", "# nothing\n\n# here\n", "empty"),
    whole("null document", "§~\n", "expected a mapping of keys, got None"),
    whole("a word", "§hello\n", "expected a mapping of keys, got 'hello'"),
    whole("a list", "§- version: 1\n", "expected a mapping of keys, got a list"),
    whole("UTF-16", SPACE.encode("utf-16"), "not UTF-8", "save it as UTF-8"),
    whole("Latin-1", SPACE.replace("toy", "café").encode("latin-1"), "not UTF-8 at byte 20"),
    whole("binary", bytes(range(256)) * 8, "not UTF-8"),
    whole("huge file", SPACE.encode() + b"#" * 1_000_000, "bytes is no settings file", "1000000"),
    whole("deep nesting", "a: " + "[" * 800 + "]" * 800, "YAML syntax"),
    whole("alias bomb", BOMB, "aliases (*a) are not supported"),
    whole("second document", SPACE + "§---\nversion: 1\n", "YAML syntax", "document"),
    whole("anchor twice", "a: &x 1\nb: §&x 2\n", "YAML syntax", "anchor"),
    whole("control character", "version: 1\nname: t§\x07y\n", "YAML syntax", "#x0007"),
    whole("directive", "§%YAML 9.9\n---\n" + SPACE, "YAML syntax", "version"),
    *edits(
        SPACE,
        [
            ("tab as indentation", "  calls: [5, 8]", "§\tcalls: [5, 8]", "YAML syntax", "\\t"),
            ("unclosed list", "[5, 8]\n  grid", "[5, 8\n  grid§", "YAML syntax", "',' or ']'"),
            ("unclosed mapping", "seed: 0, crossover: 0.9, mutation: 0.1}\n", "seed: 0\n§", "'}'"),
            ("unclosed quote", "name: toy", "name: 'toy", "YAML syntax"),
            ("bad indentation", "  grid: [", "   §grid: [", "YAML syntax", "<block end>"),
            ("dedent in a section", "  grid: [", " §grid: [", "YAML syntax", "<block end>"),
            ("colon in a value", "name: toy", "name: toy§: 2", "YAML syntax", "mapping values"),
            ("no space after colon", "name: toy\n", "name:toy\n§", "YAML syntax", "':'"),
            ("unknown escape", "name: toy", 'name: "\\§qtoy"', "YAML syntax", "escape"),
            ("unknown tag handle", "name: toy", "name: §!x!y toy", "YAML syntax", "!x!"),
            ("python object tag", "name: toy", "name: §!!python/object/apply:os.system toy", "tag"),
            (
                "python tag on a quoted value",
                "name: toy",
                "name: §!!python/name:os.system 'toy'",
                "tag",
                "not allowed",
            ),
            (
                "python tag on a list",
                "[net.yaml]",
                "§!!python/object/apply:os.system [net.yaml]",
                "tag",
                "not allowed",
            ),
            (
                "python tag on a mapping",
                "{segments: 2,",
                "§!!python/object:os.system {segments: 2,",
                "tag",
                "not allowed",
            ),
            ("timestamp tag", "name: toy", "name: §!!timestamp 2024-01-01", "tag", "not allowed"),
            ("int tag on text", "population: 8", "population: §!!int eight", "eight"),
            ("int tag on hex", "population: 8", "population: §!!int 0x10", "0x10"),
            ("float tag on text", "crossover: 0.9", "crossover: §!!float high", "high"),
            ("float tag on nan", "crossover: 0.9", "crossover: §!!float nan", "[0, 1], got nan"),
            ("bool tag on yes", "segments: 2", "per_call: §!!bool yes", "true or false"),
            ("too many digits", "population: 8", "population: §" + "9" * 5000, "population"),
            ("merge key", "schedule:\n", "schedule:\n  §<<: {a: 1}\n", "unknown key '<<'"),
            ("a list as key", "name: toy", "? §[a]\n: toy", "expected a single value, got a list"),
            ("a number as key", "name: toy", "§1: toy", "expected text, got 1"),
            ("null as key", "name: toy", "§~: toy", "expected text, got None"),
            ("duplicate key", "name: toy", "name: toy\n§name: b", "'name'", ":2:", "remove one"),
            ("duplicate in section", "[uniform, quad]", "quad\n  §grid: quad", "'grid'", ":6:"),
            ("duplicate inline", "{k: 2, l: 1}", "{k: 2, l: 1, §k: 3}", "duplicate key 'k'", ":7:"),
            ("duplicate in search", "seed: 0, crossover", "seed: 1, §seed: 0, crossover", "'seed'"),
        ],
    ),
]

# Read with `read_space`; the recipe beside it is good.
VALUES = edits(
    SPACE,
    [
        # keys that nobody knows, at every level
        ("unknown key", "search: {", "§serach: {}\nsearch: {", "did you mean 'search'", "known: "),
        ("unknown evaluation key", "seed: 0, features", "§sed: 0, features", "did you mean 'seed'"),
        ("unknown search key", "population: 8", "§populaton: 8", "did you mean 'population'"),
        ("unknown schedule key", "schedule:\n", "schedule:\n  §grids: a\n", "did you mean 'grid'"),
        ("unknown widths key", "segments: 2", "segments: 2, §segment: 3", "mean 'segments'"),
        ("unknown calls key", "[5, 8]", "{min: 5, max: 8, §stepp: 1}", "did you mean 'step'"),
        ("unknown limit", "{max: 1}", "{max: 1, §mx: 2}", "did you mean 'max'"),
        # a key that must be there, misspelt: the misspelling is the place to look at
        ("typo in objectives", "objectives:", "§objective:", "'objective'", "'objectives'"),
        ("typo in schedule", "schedule:", "§shedule:", "'shedule'", "did you mean 'schedule'"),
        ("typo in calls", "calls:", "§cals:", "'cals'", "did you mean 'calls'"),
        # keys that are missing
        ("no version", "version: 1\n", "§", "key 'version' is missing"),
        ("no supernets", "supernets: [net.yaml]\n", "", "key 'supernets' is missing"),
        ("no schedule", SPACE[SPACE.index("schedule") : SPACE.index("obj")], "", "'schedule'"),
        ("no calls", "  calls: [5, 8]\n  grid", "  §grid", "key 'calls' is missing"),
        ("no grid", "  calls: [5, 8]\n  grid: [uniform, quad]", "  §calls: 5", "'grid' is missing"),
        ("no solver", " [ddim, {pfdiff: {k: 2, l: 1}}]", "§", "got None"),
        ("no widths", "{segments: 2, choices: [0.5, 1.0]}", "§{}", "key 'choices' is missing"),
        ("no choices", "{segments: 2, choices: [0.5, 1.0]}", "§{segments: 2}", "'choices'"),
        ("no min", "[5, 8]", "§{max: 8}", "key 'min' is missing"),
        ("no max", "[5, 8]", "§{min: 8}", "key 'max' is missing"),
        ("no objectives", " [fid, gflops_per_image]", "§", "expected a list, got None"),
        # version and name
        ("version 2", "version: 1", "version: §2", "reads version 1, got 2"),
        ("version as text", "version: 1", 'version: §"1"', "reads version 1, got '1'"),
        ("version true", "version: 1", "version: §true", "got True"),
        ("version 1.0", "version: 1", "version: §1.0", "got 1.0"),
        ("version a list", "version: 1", "version: §[1]", "got a list"),
        ("name going up", "name: toy", "name: §../toy", "'../toy'", "cannot name a folder"),
        ("name with a slash", "name: toy", "name: §a/b", "cannot name a folder", "use letters"),
        ("name empty", "name: toy", 'name: §""', "expected text, got ''"),
        ("name with a space", "name: toy", "name: §my toy", "'my toy'", "cannot name a folder"),
        ("name hidden", "name: toy", "name: §.toy", "'.toy'", "cannot name a folder"),
        ("name with line break", "name: toy", 'name: §"a\\nb"', "cannot name a folder"),
        ("name ending in line break", "name: toy", 'name: §"toy\\n"', "cannot name a folder"),
        ("name with escape code", "name: toy", 'name: §"a\\e[31m"', "cannot name a folder"),
        ("name too long", "name: toy", "name: §" + "a" * 65, "cannot name a folder"),
        ("name a number", "name: toy", "name: §12", "expected text, got 12"),
        ("name null", "name: toy", "name: §~", "expected text, got None"),
        # supernets
        ("supernets as text", "[net.yaml]", "§net.yaml", "expected a list, got 'net.yaml'"),
        ("supernets empty", "[net.yaml]", "§[]", "at least one entry"),
        ("supernet a number", "[net.yaml]", "[§5]", "expected text, got 5"),
        ("supernet missing", "[net.yaml]", "[§nets.yaml]", "'nets.yaml'", "no such recipe"),
        ("supernet a folder", "[net.yaml]", "[§.]", "'.'", "no such recipe"),
        ("supernet path too long", "[net.yaml]", "[§" + "n" * 300 + "]", "no such recipe"),
        ("supernet with a NUL", "[net.yaml]", '[§"n\\0.yaml"]', "no such recipe"),
        ("one supernet twice", "[net.yaml]", "§[net.yaml, ./net.yaml]", "share a name", "rename"),
        # objectives and constraints
        ("one objective", "[fid, gflops_per_image]", "§[fid]", "at least two objectives", "gflops"),
        ("unknown objective", "[fid,", "[§fidd,", "unknown value 'fidd'", "did you mean 'fid'"),
        ("a side value", "[fid,", "[§fid_se,", "unknown value 'fid_se'"),
        ("objective twice", "[fid,", "[fid, §fid,", "'fid' is listed twice"),
        ("limits reversed", "{max: 1}", "§{min: 2, max: 1}", "min 2 exceeds max 1", "swap them"),
        ("limit on images", "{gflops_per_image: {max: 1}}", "{§fid: {max: 9}}", "'fid'", "gflops"),
        ("limit unknown", "gflops_per_image: {", "§gflop_per_image: {", "mean 'gflops_per_image'"),
        ("limit nan", "{max: 1}", "{max: §.nan}", "expected a number, got '.nan'"),
        ("limit infinite", "{max: 1}", "{max: §1e999}", "got inf"),
        ("limit negative", "{max: 1}", "{max: §-1}", "got -1"),
        ("limit no mapping", "{max: 1}", "§0.5", "expected a mapping of keys, got 0.5"),
        ("constraints a list", "{gflops_per_image: {max: 1}}", "§[fid]", "got a list"),
        # evaluation
        ("one image", "images: 100", "images: §1", "at least 4, got 1"),
        ("images exponent", "images: 100", "images: §1e3", "expected a whole number, got 1000.0"),
        ("images text", "images: 100", "images: §many", "expected a whole number, got 'many'"),
        ("batch 0", "batch: 50", "batch: §0", "at least 1, got 0"),
        ("seed negative", "batch: 50, seed: 0", "batch: 50, seed: §-1", "at least 0, got -1"),
        ("unknown extractor", "classifier", "§clasifier", "'clasifier'", "classifier"),
        ("extractor a number", "classifier", "§5", "expected text, got 5"),
        ("no statistics", "device:", "reference: §s.npz, device:", "'s.npz'", "stepsearch stats"),
        ("statistics a folder", "device:", "reference: §., device:", "no such statistics"),
        ("no weights file", "device:", "weights: §w.pth, device:", "'w.pth'", "no such weights"),
        ("weights with a NUL", "device:", 'weights: §"w\\0", device:', "no such weights"),
        ("unknown device", "auto", "§gpu", "unknown value 'gpu'", "known: auto, cpu, cuda"),
        ("rung of fid", *rung("§{images: 50, objective: fid, keep: 1}"), "kid"),
        ("rung of what", *rung("{images: 5, objective: §nfe, keep: 1}"), "'nfe'"),
        ("rung keeps 0", *rung("{images: 5, objective: kid, keep: §0}"), "(0, 1], got 0"),
        ("rung key", *rung("{images: 5, objective: kid, §kep: 1}"), "'kep'"),
        ("evaluation null", SPACE[SPACE.index(" {im") : SPACE.index("\nsearch")], "§", "got None"),
        # search
        ("unknown algorithm", "nsga2", "§nsga4", "'nsga4'", "did you mean 'nsga"),
        ("population 1", "population: 8", "population: §1", "between 2 and 100000, got 1"),
        ("population text", "population: 8", "population: §eight", "got 'eight'"),
        ("population true", "population: 8", "population: §true", "got True"),
        ("population a float", "population: 8", "population: §8.0", "got 8.0"),
        ("population a list", "population: 8", "population: §[8]", "got a list"),
        ("generations 0", "generations: 2", "generations: §0", "got 0"),
        ("search seed negative", "generations: 2, seed: 0", "seed: §-1", "got -1"),
        ("search seed large", "generations: 2, seed: 0", "seed: §4294967296", "got 4294967296"),
        ("crossover 2", "crossover: 0.9", "crossover: §2", "[0, 1], got 2"),
        ("mutation 0", "mutation: 0.1", "mutation: §0", "(0, 1], got 0"),
        ("mutation null", "mutation: 0.1", "mutation: §null", "expected a number, got None"),
        ("unknown mode", "population: 8", "mode: §fast, population: 8", "'fast'", "steady"),
        ("mode of others", "{algorithm: nsga2,", "§{algorithm: nsga3, mode: steady,", "whole"),
        ("weights short", "{algorithm: nsga2,", "§{algorithm: nsga2, weights: [1],", "1 weights"),
        ("weights text", "population: 8", "weights: [§a], population: 8", "expected a number"),
        ("begin from a number", "population: 8", "warm_start: [§3], population: 8", "got 3"),
        ("begin twice", "population: 8", "warm_start: [a, §a], population: 8", "twice"),
        ("search a list", SPACE[SPACE.index("{alg") :], "§[nsga2]\n", "got a list"),
    ],
)

# The recipe is wrong; read alone and through a space file the message is the same.
RECIPES = [
    whole("recipe empty", "", "empty"),
    whole("recipe is a list", "§[version, 1]\n", "expected a mapping of keys, got a list"),
    *edits(
        UNET,
        [
            ("recipe syntax", "[0.5, 1.0]", "[0.5, 1.0\nnet§: {", "YAML syntax"),
            ("recipe duplicate", "data: digits", "data: digits\n§data: digits", "'data'", ":3:"),
            ("recipe unknown key", "data: digits", "data: digits\n§trian: {}", "mean 'train'"),
            ("recipe version", "version: 1", "version: §0", "reads version 1, got 0"),
            ("recipe without version", "version: 1\n", "§", "key 'version' is missing"),
            ("recipe name", "name: net", "name: §n/t", "cannot name a folder"),
            ("recipe without data", "version: 1\nname: net\ndata: digits", "§version: 1", "'data'"),
            ("typo in net", "net: {family", "§nte: {family", "did you mean 'net'"),
            ("net a list", UNET[UNET.index("{f") : UNET.index("\ntrain")], "§[unet]", "got a list"),
            ("no family", "{family: unet, ", "§{", "key 'family' is missing"),
            ("unknown family", "family: unet", "family: §u-net", "'u-net'", "did you mean 'unet'"),
            ("recipe width 0", "[0.5, 1.0]", "[§0.0, 1.0]", "must lie in (0, 1], got 0.0"),
            ("recipe width 2", "[0.5, 1.0]", "[0.5, §2]", "must lie in (0, 1], got 2"),
            ("recipe width twice", "[0.5, 1.0]", "[1, §1.0]", "1.0 is listed twice"),
            ("recipe widths empty", "[0.5, 1.0]", "§[]", "at least one entry"),
            ("unknown data", "digits", "§digit", "'digit'", "did you mean 'digits'"),
            ("data a number", "digits", "§8", "expected text, got 8"),
            ("data kind without path", "digits", "§folder", "folder", "path"),
            ("data of unknown kind", "digits", "{§foldr: images}", "did you mean 'folder'"),
            ("data of two kinds", "digits", "§{folder: a, npz: b}", "name one of"),
            ("data of no kind", "digits", "§{size: 8}", "name one of", "folder, npz, parquet"),
            ("folder missing", "digits", "{folder: §images}", "'images'", "no such file or folder"),
            ("npz missing", "digits", "{npz: §a.npz}", "'a.npz'", "no such file"),
            ("parquet missing", "digits", "{parquet: §a.parquet}", "'a.parquet'", "no such file"),
            ("path with a NUL", "digits", '{folder: §"a\\0b"}', "no such file"),
            ("path too long", "digits", "{folder: §" + "a" * 300 + "}", "no such file"),
            ("data size 0", "digits", "{folder: ., size: §0}", "between 1 and 4096, got 0"),
            ("data size text", "digits", "{folder: ., size: §big}", "got 'big'"),
            ("data path remedy", "digits", "{npz: §a.npz}", "correct the path", "data.npz=PATH"),
            ("data channels 2", "digits", "{folder: ., channels: §2}", "must be 1 or 3, got 2"),
            ("data channels 4", "digits", "{folder: ., channels: §4}", "between 1 and 3, got 4"),
            ("data corrupt", "digits", "{folder: ., corrupt: §skp}", "did you mean 'skip'"),
            ("data args", "digits", "{folder: ., args: §{a: 1}}", "'folder' takes none"),
            ("data unknown key", "digits", "{folder: ., §sise: 8}", "did you mean 'size'"),
            ("data set without name", "digits", "§dataset", "{dataset: package.module:name}"),
            ("data set no name", "digits", "{dataset: §a.b}", "'a.b'", "package.module:name"),
            ("data set hostile", "digits", '{dataset: §"os:system(1)"}', "package.module:name"),
            ("data set args", "digits", "{dataset: 'a:b', args: §[1]}", "got a list"),
            ("data set args deep", "digits", "{dataset: 'a:b', args: {c: §{d: 1}}}", "a mapping"),
            ("base odd", "base: 16, mult", "base: 15, mult", "an even number", "15"),
            ("base missing", "base: 16, ", "", "base", "missing"),
            ("base text", "base: 16", "base: wide", "base", "'wide'"),
            ("base true", "base: 16", "base: true", "base", "True"),
            ("base that fits no groups", "base: 16", "base: 18", "18", "groups", "choose base"),
            ("groups 0", "groups: 2", "groups: 0", "groups start at 1", "groups=0"),
            ("groups 3", "groups: 2", "groups: 3", "do not fall into 3 groups", "choose"),
            ("mult empty", "[1, 2]", "[]", "mult", "start at 1"),
            ("mult 0", "[1, 2]", "[1, 0]", "mult=[1, 0]", "start at 1"),
            ("mult one number", "[1, 2]", "2", "a list of whole numbers", "got 2"),
            ("mult a mapping", "[1, 2]", "{a: 1}", "got a mapping"),
            ("blocks 0", "blocks: 1", "blocks: 0", "blocks=0", "start at 1"),
            ("blocks a float", "blocks: 1", "blocks: 1.0", "blocks", "got 1.0"),
            ("attention level", "groups: 2", "groups: 2, attention: [2]", "[2]", "outside 0..1"),
            ("attention negative", "groups: 2", "groups: 2, attention: [-1]", "[-1]", "outside"),
            ("dropout 1", "groups: 2", "groups: 2, dropout: 1", "dropout=1", "[0, 1)"),
            ("dropout a list", "groups: 2", "groups: 2, dropout: [0.1]", "dropout", "[0.1]"),
            ("sinusoid odd", "groups: 2", "groups: 2, sinusoid: 3", "sinusoid", "3"),
            ("sinusoid negative", "groups: 2", "groups: 2, sinusoid: -2", "sinusoid", "-2"),
            ("unknown net key", "blocks: 1", "block: 1", "'block'", "did you mean 'blocks'"),
            ("width of no channel", "[0.5, 1.0]", "[1e-8, 1.0]", "1e-08", "choose base"),
            ("no train section", UNET[UNET.index("train") :], "", "key 'train' is missing"),
            ("train null", UNET[UNET.index(" {steps") :], "§\n", "a mapping of keys, got None"),
            ("no steps", "{steps: 2, ", "§{", "key 'steps' is missing"),
            ("steps 0", "steps: 2", "steps: §0", "at least 1, got 0"),
            ("steps exponent", "steps: 2", "steps: §2e3", "expected a whole number, got 2000.0"),
            ("train batch 0", "batch: 8", "batch: §0", "at least 1, got 0"),
            ("rate 0", "1e-3", "§0", "must lie in (0, 1], got 0"),
            ("rate text", "1e-3", "§fast", "expected a number, got 'fast'"),
            ("rate nan", "1e-3", "§.nan", "expected a number, got '.nan'"),
            ("rate infinite", "1e-3", "§.inf", "expected a number, got '.inf'"),
            ("warmup negative", "warmup: 0", "warmup: §-1", "at least 0, got -1"),
            ("ema 2", "ema: 0.9", "ema: §2", "[0, 1], got 2"),
            ("train seed negative", "seed: 0", "seed: §-1", "at least 0, got -1"),
            ("threads 0", "threads: 1", "threads: §0", "between 1 and 1024, got 0"),
            ("flip text", "seed: 0", "seed: 0, flip: §half", "true or false", "'half'"),
            ("precision", "seed: 0", "seed: 0, precision: §fp8", "'fp8'", "float32, bf16"),
            ("accumulate 0", "seed: 0", "seed: 0, accumulate: §0", "at least 1, got 0"),
            ("between negative", "seed: 0", "seed: 0, between: §-1", "got -1"),
            ("distill 2", "seed: 0", "seed: 0, distill: §2", "[0, 1], got 2"),
            ("pool bare", "seed: 0", "seed: 0, immiscible: §256", "a mapping of keys, got 256"),
            ("pool 0", "seed: 0", "seed: 0, immiscible: {pool: §0}", "between 1 and 65536, got 0"),
            (
                "method unknown",
                "seed: 0",
                "seed: 0, immiscible: {method: §knm}",
                "'knm'",
                "did you mean 'knn'",
            ),
            (
                "scope unknown",
                "seed: 0",
                "seed: 0, immiscible: {scope: §class}",
                "'class'",
                "global, within_class",
            ),
            (
                "scope of knn",
                "seed: 0",
                "seed: 0, immiscible: §{method: knn, scope: global}",
                "shares no noise",
                "leave scope out",
            ),
            ("unknown train key", "steps: 2,", "steps: 2, §leaning_rate: 1,", "'learning_rate'"),
        ],
    ),
    *edits(
        GAUSSIAN,
        [
            (
                "gaussian with train",
                "4}",
                "4}\ntrain: §{steps: 1}",
                "fitted, not trained",
                "remove",
            ),
            ("components 0", "components: 4", "components: 0", "components", "0"),
            ("components true", "components: 4", "components: true", "components", "True"),
            ("components missing", ", components: 4", "", "'components'", "at least 1"),
            ("gaussian with a base", "components: 4", "base: 4", "'components'", "'base'"),
        ],
    ),
]
