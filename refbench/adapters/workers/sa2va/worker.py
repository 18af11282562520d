"""Sa2VA (ByteDance/Sa2VA-*, code at bytedance/Sa2VA, commit 9832e1a, Apache-2.0): its weights bring their code along.

Options: weights=FOLDER (a checkout of the hub's), trust_remote_code=yes (that code is run here, from the folder: read
it first, and take the weights at a commit you know).

As the published evaluation does it: the model writes its answer (greedy, 2,048 tokens at most); the masks of all [SEG]
in it are joined, and an answer without one means an empty mask.
"""

import atexit
import json
import os
import shutil
import tempfile

import numpy as np
import torch
from research_code import (
    NoDropPath,
    all_weights,
    as_words,
    check_torchvision,
    cuda_is,
    for_torchvision,
    installed,
    need,
    not_here,
    stand_in,
)
from worker_sdk import Answer, nothing_written, serve, sha256_of

QUESTION = "<image>\n Please segment %s in this image."
SEGMENT = "[SEG]"


class Sa2Va(object):
    name = "sa2va"
    mode = "generate"
    # The official code takes one at a time.
    max_batch = 1

    def __init__(self, config, device):
        weights = need(config, "weights", "a folder of weights")
        if config.get("trust_remote_code") != "yes":
            raise ValueError(
                "the weights bring code along (*.py in %s), which would run here: read it, then say "
                "-o trust_remote_code=yes" % weights
            )
        # A copy of its own: two workers would write the same files.
        code = tempfile.mkdtemp(prefix="refbench-sa2va-")
        atexit.register(shutil.rmtree, code, ignore_errors=True)
        os.environ["HF_MODULES_CACHE"] = code
        self.device = cuda_is(device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        settings = _settings(weights)
        self.is_qwen = settings["auto_map"]["AutoModel"].endswith("Sa2VAChatModelQwen")
        check_torchvision()
        # These look for torchvision when they are imported; they must not find the stand-in.
        import transformers
        from transformers import AutoModel, AutoTokenizer, PreTrainedModel  # noqa: F401

        _check_versions(settings, self.is_qwen, transformers.__version__)
        _stand_ins()
        loaded = AutoModel.from_pretrained(
            weights,
            torch_dtype=self.dtype,
            low_cpu_mem_usage=True,
            trust_remote_code=True,
            output_loading_info=True,
            **({} if self.is_qwen else {"use_flash_attn": installed("flash_attn")}),
        )
        self.network = all_weights(loaded, weights, "Sa2VA").eval().to(self.device)
        if self.is_qwen:
            from transformers import AutoProcessor

            processor = AutoProcessor.from_pretrained(weights, trust_remote_code=True)
            self.reading, self.tokenizer = {"processor": processor}, processor.tokenizer
            # Of the picture for SAM 2.
            self.network.torch_dtype = self.dtype
        else:
            self.tokenizer = AutoTokenizer.from_pretrained(weights, trust_remote_code=True)
            self.reading = {"tokenizer": self.tokenizer}
            self.network.preparing_for_generation(self.tokenizer, torch_dtype=self.dtype)
        sam = self.network.grounding_encoder.sam2_model
        begin = sam.init_state
        sam.init_state = lambda images: dict(begin(images), device=self.device, storage_device=self.device)
        self.weights_sha256 = sha256_of(weights)

    @torch.no_grad()
    def segment(self, images, expressions):
        return [self._one(image, expression) for image, expression in zip(images, expressions)]

    def _one(self, image, expression):
        words, marked = as_words(expression, self.tokenizer)
        output = self.network.predict_forward(image=image, text=QUESTION % words, **self.reading)
        said = output["prediction"]
        masks = [np.asarray(mask, bool).reshape(image.height, image.width) for mask in output["prediction_masks"]]
        if not masks or SEGMENT not in said:
            return nothing_written(image, SEGMENT, said)
        note = "markup in the expression" if marked else ""
        return Answer(np.logical_or.reduce(masks), note=note, raw=said)


def _settings(weights):
    """config.json of the weights, which names their code."""
    path = os.path.join(weights, "config.json")
    if not os.path.exists(path):
        raise ValueError("there is no config.json in %s: give a checkout of e.g. ByteDance/Sa2VA-4B" % weights)
    with open(path) as file:
        settings = json.load(file)
    if "Sa2VA" not in settings.get("auto_map", {}).get("AutoModel", ""):
        raise ValueError("%s brings no code of Sa2VA along (auto_map in config.json)" % weights)
    return settings


def _check_versions(settings, is_qwen, version):
    major, minor = (int(x) for x in version.split(".")[:2])
    language = settings.get("llm_config", {}).get("architectures", [""])[0]
    if language == "InternLM2ForCausalLM" and (major, minor) > (4, 49):
        raise ValueError(
            "these weights (Sa2VA-8B, -26B) write nothing with transformers %s: give an interpreter with transformers "
            "4.49.0, tokenizers 0.21.4, accelerate, einops and sentencepiece, -o python=PATH" % version
        )
    if is_qwen and (not installed("torchvision") or not installed("qwen_vl_utils")):
        raise ValueError("the Qwen versions of Sa2VA need torchvision and qwen-vl-utils")


def _stand_ins():
    for_torchvision()
    if not installed("timm"):
        stand_in("timm.models.layers", DropPath=NoDropPath)
    if not installed("peft"):
        # LoRA weights are merged before the release.
        stand_in("peft", LoraConfig=not_here, get_peft_model=not_here)
    if not installed("einops"):
        stand_in("einops", rearrange=not_here)


if __name__ == "__main__":
    serve(Sa2Va)
