"""EVF-SAM, from its official repository (hustvl/EVF-SAM, commit 9935dc5, Apache-2.0), which you check out yourself.

Options: repo=FOLDER, weights=FOLDER (a checkout of e.g. YxZhang/evf-sam2-multitask), kind=ori|sam2|effi (the SAM
inside), release=multitask|first.

As in eval.py: lower-case expression, logits above 0 at the image's size; it never predicts that there is no target.
release: since commit 9d00853 the repository preprocesses images differently for SAM 2 and EfficientSAM and takes the
best of SAM 2's three masks. The "multitask" weights need this; the first weights (evf-sam2, 83.6 on RefCOCO val) need
the earlier behaviour, which release=first gives here. For kind=ori the two are the same.
"""

import importlib

import numpy as np
import torch
from PIL import Image
from research_code import (
    SAM_MEAN,
    SAM_SPREAD,
    OfLast,
    add_repository,
    all_weights,
    check_torchvision,
    choice,
    for_torchvision,
    installed,
    need,
    not_here,
    sam_pixels,
    stand_in,
)
from torch import nn
from torch.nn import functional as F
from worker_sdk import Answer, git_revision, serve, sha256_of

KINDS = {
    "ori": ("model.evf_sam", "EvfSamModel"),
    "sam2": ("model.evf_sam2", "EvfSam2Model"),
    "effi": ("model.evf_effisam", "EvfEffiSamModel"),
}
RELEASES = ("multitask", "first")
SIDE = 1024
SEEN_SIDE = 224
# BEiT-3 has this many positions for text; it fails on longer text.
MOST_TOKENS = 1022


class EvfSam(object):
    name = "evfsam"
    # The text is not masked: expressions of different lengths cannot go together.
    max_batch = 1

    def __init__(self, config, device):
        repository = add_repository(config, "https://github.com/hustvl/EVF-SAM", "model/evf_sam.py")
        weights = need(config, "weights", "a folder of weights")
        self.kind = choice(config, "kind", "the SAM in the weights", tuple(KINDS))
        self.release = choice(
            config, "release", "which weights these are", RELEASES, "first" if self.kind == "ori" else None
        )
        self.device = torch.device(device)
        # Half precision and no autocast on a GPU, as in eval.py.
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        check_torchvision()
        # These look for torchvision when they are imported; they must not find the stand-in.
        from transformers import (  # noqa: F401
            AutoConfig,
            AutoModelForCausalLM,
            AutoTokenizer,
            BitsAndBytesConfig,
            PreTrainedModel,
            XLMRobertaTokenizer,
        )

        for_torchvision()
        # torchscale and BEiT-3 import these for training; the versions they name can hardly be installed today.
        stand_in("timm.models.layers", trunc_normal_=nn.init.trunc_normal_, drop_path=not_here)
        stand_in("fairscale.nn", checkpoint_wrapper=not_here, wrap=not_here)
        module, name = KINDS[self.kind]
        official = getattr(importlib.import_module(module), name)
        self.longest_side = importlib.import_module("model.segment_anything.utils.transforms").ResizeLongestSide
        self.tokenizer = AutoTokenizer.from_pretrained(weights, padding_side="right", use_fast=False)
        # With accelerate no random weights are drawn first, which takes minutes.
        quickly = {"low_cpu_mem_usage": True} if installed("accelerate") else {}
        loaded = official.from_pretrained(weights, torch_dtype=self.dtype, output_loading_info=True, **quickly)
        self.network = all_weights(loaded, weights, "EVF-SAM (kind=%s)" % self.kind).eval().to(self.device)
        sam = self.network.visual_model
        if self.kind == "sam2":
            sam.forward_image = OfLast(sam.forward_image)
        else:
            sam.image_encoder.forward = OfLast(sam.image_encoder.forward)
        self.pixels = OfLast(self._pixels)
        self.revision = git_revision(repository)
        self.weights_sha256 = sha256_of(weights)

    @torch.no_grad()
    def segment(self, images, expressions):
        return [self._one(image, expression) for image, expression in zip(images, expressions)]

    def _one(self, image, expression):
        seen, sam, size = self.pixels(image)
        ids = self.tokenizer(expression.strip().lower(), return_tensors="pt")["input_ids"]
        note = ""
        if ids.shape[1] > MOST_TOKENS:
            note = "text cut to %d tokens" % MOST_TOKENS
            ids = torch.cat([ids[:, : MOST_TOKENS - 1], ids[:, -1:]], dim=1)
        best_of_three = {"multimask_output": self.release != "first"} if self.kind == "sam2" else {}
        logits = self.network.inference(
            sam, seen, ids.to(self.device), [size], [(image.height, image.width)], **best_of_three
        )[0]  # fmt: skip
        return Answer(logits > 0, score=float(logits.float().max().sigmoid()), note=note)

    def _pixels(self, image):
        """Pixels for BEiT-3 and for SAM, and the size of SAM's image without padding."""
        rgb = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        seen = F.interpolate(
            rgb[None].float().div(255), (SEEN_SIDE, SEEN_SIDE), mode="bicubic", align_corners=False
        )  # fmt: skip
        seen = seen.sub(0.5).div(0.5)
        if self.kind == "ori":
            sam, size = sam_pixels(image, self.longest_side)
        else:
            sam, size = self._stretched(image), (SIDE, SIDE)
        return seen.to(self.device, self.dtype), sam[None].to(self.device, self.dtype), size

    def _stretched(self, image):
        mean, spread = (torch.tensor(v).view(-1, 1, 1) for v in (SAM_MEAN, SAM_SPREAD))
        if self.release == "multitask":
            squeezed = np.array(image.resize((SIDE, SIDE), Image.BILINEAR))
            return (torch.from_numpy(squeezed).permute(2, 0, 1).contiguous() - mean) / spread
        larger = torch.from_numpy(self.longest_side(SIDE).apply_image(np.array(image))).permute(2, 0, 1).contiguous()
        return F.interpolate(((larger - mean) / spread)[None], (SIDE, SIDE), mode="bilinear", align_corners=False)[0]


if __name__ == "__main__":
    serve(EvfSam)
