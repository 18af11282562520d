"""The places ("module:attribute") of the built-in builders, adapters, protocols, checks and refiners, by name."""

from __future__ import annotations

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
    # A name with parentheses is a family: trimap(3) is the protocol with 3 px, trimap the one with the default.
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
        "mask-confirmed": "refbench.curation.checks.validators:ConfirmedByModels",
        "mask-contradicted": "refbench.curation.checks.validators:ContradictedByModels",
    },
    "refiners": {
        "grabcut": "refbench.curation.refiners.grabcut:GrabCut",
        "random-walker": "refbench.curation.refiners.classical:RandomWalker",
        "active-contour": "refbench.curation.refiners.classical:ActiveContour",
        "watershed": "refbench.curation.refiners.classical:Watershed",
        "superpixels": "refbench.curation.refiners.classical:Superpixels",
        "isnet": "refbench.curation.refiners.isnet:IsNet",
        "trained": "refbench.curation.refiners.trained:TrainedRefiner",
        "sam": "refbench.curation.refiners.sam:Sam",
        "sam-hq": "refbench.curation.refiners.sam:SamHq",
        "sam2": "refbench.curation.refiners.sam:Sam2",
        "sam3": "refbench.curation.refiners.sam:Sam3",
        "sam3-text": "refbench.curation.refiners.sam3_text:Sam3Text",
    },
}
