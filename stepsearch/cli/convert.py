"""`stepsearch convert`: a network that others trained, written as ours."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def convert_arguments(parser: argparse.ArgumentParser) -> None:
    """What `convert` is told."""
    parser.epilog = (
        "SOURCE is a checkpoint in the layout of DDSM's code (.safetensors, .pt, .pth, .ckpt), or "
        "the folder of a diffusers UNet2DModel or of a pipeline with one."
    )
    text = "a .safetensors file; its card is written beside it"
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help=text)
    parser.add_argument("--name", help="of the network in schedules (default: that of the file)")
    text = "to offer (default: the trained ones, else the eighths from 0.25 that fit)"
    parser.add_argument("--widths", type=float, nargs="+", metavar="W", help=text)
    text = "groups of the norms of a DDSM file, which does not say (default 16)"
    parser.add_argument("--groups", type=int, metavar="N", help=text)
    text = "side of the images, where SOURCE does not say"
    parser.add_argument("--size", type=int, metavar="N", help=text)
    text = "which of a DDSM checkpoint that holds both (default ema)"
    parser.add_argument("--weights", choices=("ema", "model"), default="ema", help=text)
    text = "the last class embedding of a diffusers network stands for no label"
    parser.add_argument("--null-label", action="store_true", help=text)


def convert(args: argparse.Namespace) -> int:
    """Write the network; its path is printed, what the source does not say on stderr."""
    from stepsearch.nets.pretrained import convert

    card = convert(
        args.source,
        args.output,
        name=args.name,
        widths=args.widths,
        groups=args.groups,
        size=args.size,
        weights=args.weights,
        null_label=args.null_label,
    )
    for assumed in card.training["assumed"]:
        print(f"{args.source}: assumed: {assumed}", file=sys.stderr)
    for width, flops in zip(card.widths, card.flops, strict=True):
        print(f"width {width:g}: {flops / 1e9:.4g} GFLOPs per image and call", file=sys.stderr)
    print(args.output)
    return 0
