"""MagNet, from its official repository (yxchng/mask-grounding, commit 2debc7e, AGPL-3.0), which you check out yourself.

Options: repo=FOLDER, weights=FILE (magnet_*.pth of yxchng/magnet_weights), bert=FOLDER (config.json and vocab.txt of
bert-base-uncased), side=480 (448 for magnet_all.pth). As test.py does it: 20 tokens, always padded; the logits of the
mask are resized with corners aligned, then a sigmoid above one half. test.py takes a softmax over its single
query, so the class logits have no effect.
"""

import importlib.util
import os
import sys

import torch
from research_code import (
    Namespace,
    add_repository,
    architecture,
    bert_tokens,
    for_swin,
    image_tensor,
    load_checkpoint,
    load_strictly,
    need,
    not_here,
    stand_in,
)
from torch import nn
from torch.nn import functional as F
from worker_sdk import Answer, git_revision, serve, sha256_of

TOKENS = 20
BASE = {
    "embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12,
    "encoder_layers": 4, "decoder_layers": 10, "hidden_dim": 256, "feedforward_dim": 2048, "attention_heads": 8,
    "language_layers": None,
}  # fmt: skip
SWIN = ("embed_dim", "depths", "num_heads", "window_size")


class Growing(dict):
    """A dict whose items are attributes and whose missing items are dicts: as addict.Dict is used for the settings."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self.setdefault(name, Growing())

    __setattr__ = dict.__setitem__


def initial(layer):
    """The initialisation of a layer in fvcore, before its weights are loaded."""
    nn.init.kaiming_uniform_(layer.weight, a=1)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, 0)


class MagNet(object):
    name = "magnet"
    # The official data set feeds the words as they were written, punctuation and all.
    text = "raw"
    max_batch = 4

    def __init__(self, config, device):
        repository = add_repository(config, "https://github.com/yxchng/mask-grounding", "modeling/MaskFormerModel.py")
        weights = need(config, "weights", "a checkpoint")
        bert = need(config, "bert", "the config.json and vocab.txt of bert-base-uncased")
        self.side = int(config.get("side", "480"))
        self.device = torch.device(device)
        for_swin()
        stand_in("addict", Dict=Growing)
        stand_in("fvcore.nn.weight_init", c2_xavier_fill=initial)
        # test.py imports torchvision, and transforms.py three of its functions; the pictures are prepared here.
        stand_in("torchvision.transforms.functional", resize=not_here, to_tensor=not_here, normalize=not_here)
        import lib  # noqa: F401 (a namespace package: it must be there before its stand-in)

        stand_in("lib.mmcv_custom", load_checkpoint=not_here)
        from bert.configuration_bert import BertConfig
        from bert.multimodal_bert import MultiModalBert
        from bert.tokenization_bert import BertTokenizer
        from lib.multimodal_swin import MultiModalSwin
        from modeling.MaskFormerModel import MaskFormerHead

        official = _by_path("magnet_test", os.path.join(repository, "test.py"))
        numbers = architecture(config, BASE)
        self.tokenizer = BertTokenizer.from_pretrained(bert)
        backbone = MultiModalSwin(
            ape=False, drop_path_rate=0.3, patch_norm=True, out_indices=(0, 1, 2, 3), use_checkpoint=False,
            num_heads_fusion=[1, 1, 1, 1], fusion_drop=0.0, **{k: numbers[k] for k in SWIN}
        )  # fmt: skip
        more = {"pwam_idx": numbers["language_layers"]} if numbers["language_layers"] else {}
        language = MultiModalBert(BertConfig.from_pretrained(bert), embed_dim=backbone.embed_dim, **more)
        language.pooler = None
        head = MaskFormerHead(_settings(numbers), _shapes(backbone.embed_dim))
        arguments = Namespace(
            swin_type="base", window12=True, mha="", fusion_drop=0.0, img_size=self.side, model="lavt"
        )
        network = official.WrapperModel(backbone, language, head, arguments)
        self.network = load_strictly(network, load_checkpoint(weights)["model"], "MagNet").eval().to(self.device)
        self.revision = git_revision(repository)
        self.weights_sha256 = sha256_of(weights)

    @torch.no_grad()
    def segment(self, images, expressions):
        pixels = torch.stack([image_tensor(image, self.side) for image in images]).to(self.device)
        ids, attention, cut = bert_tokens(self.tokenizer, expressions, TOKENS)
        logits = self.network(pixels, ids.to(self.device), attention.to(self.device))["pred_masks"]
        answers = []
        for one, image, shortened in zip(logits, images, cut):
            size = image.height, image.width
            resized = F.interpolate(one[None], size=size, mode="bilinear", align_corners=True)[0, 0]
            answers.append(Answer(resized.sigmoid() > 0.5, note="text cut to %d tokens" % TOKENS if shortened else ""))
        return answers


def _by_path(name, path):
    """Import by path, because Python's library also has a module called test."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _shapes(width):
    return {"s%d" % (k + 1): Growing(channel=width * 2**k, stride=4 * 2**k) for k in range(4)}


def _settings(numbers):
    """The settings that test.py writes down for its head."""
    settings = Growing()
    head, former = settings.MODEL.SEM_SEG_HEAD, settings.MODEL.MASK_FORMER
    head.COMMON_STRIDE = 4
    head.TRANSFORMER_ENC_LAYERS = numbers["encoder_layers"]
    head.CONVS_DIM = head.MASK_DIM = numbers["hidden_dim"]
    head.NUM_CLASSES = 1
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["s1", "s2", "s3", "s4"]
    former.DROPOUT = 0.0
    former.NHEADS = numbers["attention_heads"]
    former.HIDDEN_DIM = numbers["hidden_dim"]
    former.NUM_OBJECT_QUERIES = 1
    former.DIM_FEEDFORWARD = numbers["feedforward_dim"]
    former.DEC_LAYERS = numbers["decoder_layers"]
    former.PRE_NORM = False
    return settings


if __name__ == "__main__":
    serve(MagNet)
