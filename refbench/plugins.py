"""Where builders, adapters, protocols, checks and refiners are found: one table, plus what other packages register.

The only place, with the command line's verb table, where names become imports at run time: so that
`refbench --help` loads neither torch nor pandas, and a missing extra matters to its user alone.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import re
import sys
import typing
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from refbench.errors import AdapterError, DatasetError, RefbenchError

# The folder names of the release, its misspellings included.
SGINW = (
    "Airplane-Parts Bottles Brain-Tumor Chicken Cows Electric-Shaver Elephants Fruits Garbage Ginger-Garlic Hand "
    "Hand-Metal House-Parts HouseHold-Items Nutterfly-Squireel Phones Poles Puppies Rail Salmon-Fillet Strawberry "
    "Tablets Toolkits Trash Watermelon"
).split()

TABLE: dict[str, dict[str, str]] = {
    "builders": {
        "refcoco": "refbench.datasets.builders.refer:build",
        "refcoco+": "refbench.datasets.builders.refer:build",
        "refcocog-umd": "refbench.datasets.builders.refer:build",
        "refcocog-google": "refbench.datasets.builders.refer:build",
        "refcoco-m": "refbench.datasets.builders.refcoco_m:build",
        "grefcoco": "refbench.datasets.builders.grefcoco:build",
        "refzom": "refbench.datasets.builders.refzom:build",
        "reasonseg": "refbench.datasets.builders.reasonseg:build",
        "lvis": "refbench.datasets.builders.lvis:build",
        **{f"sginw-{name}": "refbench.datasets.builders.sginw:build" for name in SGINW},
        "sa-co-gold": "refbench.datasets.builders.sa_co:build",
        "sa-co-silver": "refbench.datasets.builders.sa_co:build",
        "scenes": "refbench.datasets.builders.scenes:build",
        "scenes-hurried": "refbench.datasets.builders.scenes:build_hurried",
        "snapshots": "refbench.datasets.builders.snapshots:build",
    },
    "adapters": {
        "nothing": "refbench.adapters.baselines:Nothing",
        "everything": "refbench.adapters.baselines:Everything",
        "center": "refbench.adapters.baselines:Center",
        "noisy-oracle": "refbench.adapters.baselines:NoisyOracle",
        "predictions": "refbench.adapters.predictions:Predictions",
        "tiny": "refbench.adapters.tiny.adapter:Tiny",
        "clipseg": "refbench.adapters.clipseg:ClipSeg",
        "grounded-sam": "refbench.adapters.grounded_sam:GroundedSam",
        "owlv2-sam": "refbench.adapters.owlv2_sam:Owlv2Sam",
        "sam3": "refbench.adapters.sam3:Sam3",
        "florence2": "refbench.adapters.florence2:Florence2",
        "paligemma": "refbench.adapters.paligemma:PaliGemma",
        "qwen-vl-sam": "refbench.adapters.qwen_vl_sam:QwenVlSam",
        "gemini": "refbench.adapters.gemini:Gemini",
        "moondream": "refbench.adapters.moondream:Moondream",
        "moondream-local": "refbench.adapters.official:MoondreamLocal",
        "lavt": "refbench.adapters.official:lavt",
        "magnet": "refbench.adapters.official:magnet",
        "mllmseg": "refbench.adapters.official:mllmseg",
        "lisa": "refbench.adapters.official:lisa",
        "evfsam": "refbench.adapters.official:evfsam",
        "sa2va": "refbench.adapters.official:sa2va",
        "samtok": "refbench.adapters.official:samtok",
        "xsam": "refbench.adapters.official:xsam",
        "worker": "refbench.adapters.worker:Worker",
    },
    # A name with parentheses is a family: trimap(3) makes the one of 3 px, trimap that of the default.
    "protocols": {
        "refbench": "refbench.scoring.protocols.exact:REFBENCH",
        **{
            name: f"refbench.scoring.protocols.referring:{name.replace('-', '_').upper()}"
            for name in (
                "cris cgformer detris vlt lisa evf-sam sa2va glamm-3 mllmseg-res psalm hyperseg instructseg mlcd-seg "
                "x-sam seg-zero xdecoder uninext mmdet-refseg refcoco-m"
            ).split()
        },
        **{
            name: f"refbench.scoring.protocols.resized:{name.replace('-', '_').upper()}"
            for name in (
                "lavt-480 magnet-480 caris-448 polyformer-512 seqtr c3vg oneref refzom-dmmi deris-refzom deris-gres"
            ).split()
        },
        "samtok-bench": "refbench.scoring.protocols.boxes:SAMTOK_BENCH",
        "rec-acc@0.5": "refbench.scoring.protocols.boxes:REC_ACC",
        "grec": "refbench.scoring.protocols.boxes:GREC",
        "grec-iou": "refbench.scoring.protocols.boxes:GREC_IOU",
        **{
            name: f"refbench.scoring.protocols.generalised:{name.replace('-', '_').upper()}"
            for name in "gres gres-legacy-tacc gsva-gres mllmseg-gres".split()
        },
        **{
            name: f"refbench.scoring.protocols.aliases:{name.replace('-', '_').upper()}"
            for name in "etris pixellm text4seg segagent f-lmm unipixel".split()
        },
        "gres-mask-empty(k)": "refbench.scoring.protocols.generalised:gres_mask_empty",
        "boundary-iou(ratio,...)": "refbench.scoring.protocols.boundary:boundary_iou",
        "biou-hqsam": "refbench.scoring.protocols.boundary:BIOU_HQSAM",
        "davis-f": "refbench.scoring.protocols.boundary:DAVIS_F",
        "davis-jf": "refbench.scoring.protocols.boundary:DAVIS_JF",
        "trimap(k)": "refbench.scoring.protocols.boundary:trimap",
        "lvis-instance": "refbench.scoring.protocols.open_vocabulary:LVIS_INSTANCE",
        "lvis-category-union": "refbench.scoring.protocols.open_vocabulary:LVIS_CATEGORY_UNION",
        "sginw": "refbench.scoring.protocols.sginw:SGINW",
        "coco-ap": "refbench.scoring.protocols.average_precision:COCO_AP",
        "boundary-ap": "refbench.scoring.protocols.average_precision:BOUNDARY_AP",
        "lvis-ap": "refbench.scoring.protocols.average_precision:LVIS_AP",
        "sa-co": "refbench.scoring.protocols.sa_co:SA_CO",
    },
    "checks": {
        "image-broken": "refbench.curation.checks.pictures:BrokenImage",
        "image-twice": "refbench.curation.checks.pictures:ImageTwice",
        "mask-empty": "refbench.curation.checks.masks:EmptyMask",
        "mask-tiny": "refbench.curation.checks.masks:TinyMask",
        "mask-slivers": "refbench.curation.checks.masks:Slivers",
        "mask-parts-apart": "refbench.curation.checks.masks:PartsApart",
        "mask-at-border": "refbench.curation.checks.masks:AtBorder",
        "mask-unlike-box": "refbench.curation.checks.masks:UnlikeBox",
        "mask-unlike-polygons": "refbench.curation.checks.masks:UnlikePolygons",
        "mask-like-another": "refbench.curation.checks.masks:LikeAnother",
        "polygon-coarse": "refbench.curation.checks.masks:CoarsePolygon",
        "mask-off-edges": "refbench.curation.checks.pictures:OffEdges",
        "mask-holds-ground": "refbench.curation.checks.pictures:HoldsGround",
        "mask-lacks-part": "refbench.curation.checks.pictures:LacksPart",
        "expression-repeated": "refbench.curation.checks.expressions:Repeated",
        "expression-shared": "refbench.curation.checks.expressions:Shared",
        "expression-right-and-wrong": "refbench.curation.checks.expressions:RightAndWrong",
        "expression-other-script": "refbench.curation.checks.expressions:OtherScript",
        "expression-fragment": "refbench.curation.checks.expressions:Fragment",
        "expression-contradicting": "refbench.curation.checks.expressions:Contradicting",
        "expression-against-place": "refbench.curation.checks.expressions:AgainstPlace",
        "expression-against-size": "refbench.curation.checks.expressions:AgainstSize",
        "expression-against-colour": "refbench.curation.checks.expressions:AgainstColour",
        "expression-offensive": "refbench.curation.checks.expressions:Offensive",
        "expression-toxic": "refbench.curation.checks.toxicity:Toxic",
    },
    "refiners": {
        "grabcut": "refbench.curation.refiners.grabcut:GrabCut",
        "random-walker": "refbench.curation.refiners.classical:RandomWalker",
        "active-contour": "refbench.curation.refiners.classical:ActiveContour",
        "watershed": "refbench.curation.refiners.classical:Watershed",
        "superpixels": "refbench.curation.refiners.classical:Superpixels",
        "sam": "refbench.curation.refiners.sam:Sam",
        "sam-hq": "refbench.curation.refiners.sam:SamHq",
        "sam2": "refbench.curation.refiners.sam:Sam2",
        "sam3": "refbench.curation.refiners.sam:Sam3",
    },
}


LARGEST_NUMBER = 1e6
FAMILY = re.compile(r"([^()]+)\(([-+.,\de]+)\)")


class UnknownPlugin(RefbenchError):
    """No plug-in of that name."""


def available(kind: str) -> dict[str, str]:
    """Name -> "module:attribute" of the built-in plug-ins and the installed ones."""
    found = dict(TABLE[kind])
    for point in sorted(entry_points(group=f"refbench.{kind}"), key=lambda p: p.name):
        if point.name in found:
            raise RefbenchError(
                f"the installed package {point.dist.name if point.dist else '?'} registers {kind} {point.name!r}, "
                "a name that is taken; rename it or uninstall the package"
            )
        found[point.name] = point.value
    return found


def load(kind: str, name: str) -> Any:
    """Import the plug-in `name`.

    Raises:
        UnknownPlugin: there is none; the message lists what there is.
        RefbenchError: its module needs a package that is not installed; the message says which extra.
    """
    places = available(kind)
    base, arguments = _family(name) if kind == "protocols" else (name, None)
    families = {place.partition("(")[0]: place for place in places if "(" in place}
    known = name if name in places else families.get(base, "" if arguments is not None else base)
    if known not in places:
        hint = ", or path/to/file.py:Class" if kind == "adapters" else ""
        # Users know builders by what they build.
        word = "dataset" if kind == "builders" else kind[:-1]
        lower = {place.lower(): place for place in places}
        close = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, n=3)]
        if close:
            raise UnknownPlugin(f"there is no {word} {name!r}; did you mean {' or '.join(close)}{hint}?")
        raise UnknownPlugin(f"there is no {word} {name!r}; known: {', '.join(places)}{hint}")
    found = load_attribute(places[known])
    if "(" not in known:
        return found
    try:
        inspect.signature(found).bind(*(arguments or ()))
    except TypeError:
        raise UnknownPlugin(f"{name} has more numbers than {known} takes") from None
    return found(*(arguments or ()))


def _family(name: str) -> tuple[str, list[float] | None]:
    """`trimap(3)` -> ("trimap", [3.0]); the name itself and None without numbers in parentheses."""
    match = FAMILY.fullmatch(name)
    try:
        numbers = [float(n) for n in match[2].split(",")] if match else []
    except ValueError:
        return name, None
    # Widths and numbers of pixels: what is larger than any image is no name of a protocol.
    return (match[1], numbers) if match and max(map(abs, numbers)) < LARGEST_NUMBER else (name, None)


def load_attribute(place: str) -> Any:
    """Import "module:attribute"."""
    module_name, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in ("torch", "transformers", "safetensors"):
            raise RefbenchError(f"this needs {missing}: pip install 'refbench[models]'") from error
        if missing == "cv2":
            raise RefbenchError("this needs OpenCV: pip install 'refbench[opencv]'") from error
        if missing in ("svgelements", "urllib3"):
            raise RefbenchError(f"this needs {missing}: pip install 'refbench[moondream]'") from error
        if missing == "ray":
            raise RefbenchError("--engine ray needs Ray: pip install 'refbench[ray]'") from error
        if missing in ("starlette", "uvicorn"):
            raise RefbenchError(f"the review page needs {missing}: pip install 'refbench[review]'") from error
        if missing == "hotcoco":
            raise RefbenchError("this needs hotcoco: pip install 'refbench[ap]'") from error
        if missing in ("huggingface_hub", "datasets"):
            raise RefbenchError(f"this needs {missing}: pip install 'refbench[hub]'") from error
        raise RefbenchError(f"{place} needs the package {missing}, which is not installed") from error
    except (ImportError, AttributeError) as error:
        raise RefbenchError(f"{place} cannot be loaded: {error}; mend or uninstall its package") from error


def summary_of(place: str) -> str:
    """First line of the docstring behind "module:attribute", read without importing the module."""
    module_name, _, attribute = place.partition(":")
    try:
        spec = importlib.util.find_spec(module_name)
        tree = ast.parse(Path(spec.origin or "").read_text(encoding="utf-8") if spec else "")
    except (ImportError, OSError, ValueError, SyntaxError):
        return "cannot be read: a package that it needs is missing or broken"
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == attribute:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def load_adapter(name: str, options: Mapping[str, str], **offered: Any) -> Any:
    """Make an adapter: a known name, or `path/to/file.py:Class`.

    `options` are texts (`-o key=value`), turned into what the constructor's annotations say; of `offered`
    (the device) the constructor gets what it has a parameter for.

    Raises:
        AdapterError: no such file or class, an option that it does not have or cannot read.
    """
    path, colon, class_name = name.rpartition(":")
    if colon and path.endswith(".py"):
        factory = _load_file(Path(path), class_name)
    elif name.endswith(".py"):
        raise AdapterError(f"write which class of {name} is the adapter: {name}:ClassName")
    else:
        factory = load("adapters", name)
    arguments = bind_options(name, factory, options, offered)
    parameters = inspect.signature(factory).parameters
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.name not in arguments and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if missing:
        raise AdapterError(f"{name} needs {', '.join(f'-o {m}=...' for m in missing)}")
    try:
        return factory(**arguments)
    except RefbenchError:
        raise
    except Exception as error:  # somebody else's constructor: whatever it raises is reported as its failure
        raise AdapterError(f"{name} cannot be set up: {type(error).__name__}: {error}") from error


def bind_options(name: str, factory: Any, options: Mapping[str, str], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Texts (`-o key=value`) as the arguments that the annotations or defaults of `factory` ask for.

    Of `offered` it gets what it has a parameter for.

    Raises:
        AdapterError: it has no such option, or the text is none of its type.
    """
    try:
        parameters = dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError) as error:
        raise AdapterError(f"{name} is no class that can be called: {error}") from error
    try:
        hints = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except (TypeError, NameError, AttributeError):
        # Annotations that exist for type checkers only: then the defaults tell the types.
        hints = {}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    arguments: dict[str, Any] = {k: v for k, v in offered.items() if k in parameters}
    for key, text in options.items():
        if key not in parameters and not takes_any:
            known = ", ".join(parameters) or "none"
            raise AdapterError(f"{name} has no option {key!r}; it has: {known}")
        default = parameters[key].default if key in parameters else None
        known_type = str if default is None or default is inspect.Parameter.empty else type(default)
        arguments[key] = _parse_option(name, key, text, hints.get(key, known_type))
    return arguments


def options_of(factory: Any) -> list[dict[str, Any]]:
    """The options of an adapter or another part, in order: `name`, `default` (None: it has to be given), `choices`."""
    try:
        hints = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except (TypeError, NameError, AttributeError):
        hints = {}
    found = []
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        kind = hints.get(name)
        choices = [c for c in typing.get_args(kind) if c] if typing.get_origin(kind) is typing.Literal else []
        needed = parameter.default is parameter.empty
        default = None if needed else "" if parameter.default is None else str(parameter.default)
        found.append({"name": name, "default": default, "choices": choices})
    return found


def builder_options(name: str, builder: Any, options: Mapping[str, str]) -> dict[str, Any]:
    """The keyword-only parameters of a builder, from `-o key=value`; those not given at their defaults.

    Raises:
        DatasetError: the builder has no such option, or the text is none of its type.
    """
    own = {
        k: p.default
        for k, p in inspect.signature(builder).parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    unknown = sorted(set(options) - set(own))
    if unknown:
        raise DatasetError(f"{name} has no option {unknown[0]!r}; it has: {', '.join(own) or 'none'}")
    try:
        return {**own, **bind_options(name, builder, options, {})}
    except AdapterError as error:
        raise DatasetError(str(error)) from None


def _load_file(path: Path, class_name: str) -> Any:
    if not path.is_file():
        raise AdapterError(f"the adapter file {path} does not exist")
    # Under a name of its own in sys.modules, so that dataclasses and pickling inside the file work.
    module_name = f"refbench_adapter_{path.stem}"
    # Its neighbours can be imported, as they can when Python runs the file; last, so that they shadow nothing.
    neighbours = str(path.resolve().parent)
    if neighbours not in sys.path:
        sys.path.append(neighbours)
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise AdapterError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's file may fail in any way
        if isinstance(error, ModuleNotFoundError) and error.name == "worker_sdk":
            raise AdapterError(f"{path} is a worker: refbench run worker DATASET/SPLIT -o script={path}") from None
        raise AdapterError(f"{path} fails on import: {type(error).__name__}: {error}") from error
    if not hasattr(module, class_name):
        raise AdapterError(f"{path} has no class {class_name!r}")
    return getattr(module, class_name)


def _parse_option(adapter: str, key: str, text: str, kind: Any) -> Any:
    if typing.get_origin(kind) is typing.Literal:
        if text not in typing.get_args(kind):
            known = ", ".join(k for k in typing.get_args(kind) if k)
            raise AdapterError(f"{adapter}: option {key}={text!r} is none of {known}")
        return text
    choices = [k for k in typing.get_args(kind) if k is not type(None)] or [kind]
    try:
        if bool in choices:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        for number in (int, float):
            if number in choices:
                return number(text)
    except (KeyError, ValueError):
        raise AdapterError(f"{adapter}: option {key}={text!r} is not {getattr(kind, '__name__', kind)}") from None
    return Path(text) if Path in choices else text
