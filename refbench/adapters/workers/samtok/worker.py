"""SAMTok (zhouyik/Qwen3-VL-*-SAMTok ...), decoded by bytedance/Sa2VA's projects/samtok, which you check out yourself.

Options: repo=FOLDER (a checkout that has projects/samtok, as commit f8b17e0 has, Apache-2.0; a copy was read and run),
weights=FOLDER (of the hub, with mask_tokenizer_256x2.pth in it), rule=refcoco|gres.

The model writes mask tokens (greedy, 128 tokens at most), two per mask. The two published evaluations group them
differently. refcoco: one mask, from the last token of each of the two levels. gres: too long or too short groups are
repaired, the tokens are taken in pairs, and the masks are joined. Both read a well-formed group alike. A missing second
token counts as the first of its level, as in the official decoder.
"""

import importlib
import os
import re
import sys
import types

import numpy as np
import torch
from research_code import add_repository, all_weights, as_words, check_torchvision, choice, cuda_is, installed, need
from torch.nn import functional as F
from worker_sdk import Answer, git_revision, nothing_written, serve, sha256_of

QUESTION = "Please segment %s in this image."
MOST_TOKENS = 128
CODES = 256
SIDE = 1024
# Of logits, as published: a probability of 0.62.
THRESHOLD = 0.5
TOKEN = re.compile(r"<\|mt_(\d{4})\|>")
# A group with its end token, or without one if no mask token follows.
GROUP = re.compile(r"<\|mt_start\|>((?:<\|mt_\d{4}\|>)+)(?:(<\|mt_end\|>)|(?!<\|mt_))")
MISSING = -1


class SamTok(object):
    name = "samtok"
    mode = "generate"
    max_batch = 1

    def __init__(self, config, device):
        url = "https://github.com/bytedance/Sa2VA (a commit with projects/samtok)"
        repository = add_repository(config, url, "projects/samtok/models/sam2.py")
        weights = need(config, "weights", "a folder of weights")
        tokenizer_file = os.path.join(weights, "mask_tokenizer_256x2.pth")
        if not os.path.exists(tokenizer_file):
            raise ValueError("there is no mask_tokenizer_256x2.pth in %s: the decoder's weights belong there" % weights)
        rules = {"refcoco": one_mask, "gres": several_masks}
        self.rule = rules[choice(config, "rule", "the reading of mask tokens", tuple(rules), "refcoco")]
        if not installed("torchvision"):
            raise ValueError("the processor of Qwen's models needs torchvision")
        self.device = cuda_is(device)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        check_torchvision()
        from transformers import AutoModelForImageTextToText, AutoProcessor

        loaded = AutoModelForImageTextToText.from_pretrained(weights, torch_dtype=dtype, output_loading_info=True)
        self.network = all_weights(loaded, weights, "SAMTok's language model").eval().to(self.device)
        self.processor = AutoProcessor.from_pretrained(weights)
        self.decoder = _decoder(repository, tokenizer_file).to(self.device)
        self.revision = git_revision(repository)
        self.weights_sha256 = sha256_of(weights)

    @torch.no_grad()
    def segment(self, images, expressions):
        return [self._one(image, expression) for image, expression in zip(images, expressions)]

    def _one(self, image, expression):
        written = expression.strip().lower() if self.rule is several_masks else expression
        words, marked = as_words(written, self.processor.tokenizer)
        said = self._said(image, QUESTION % words)
        pairs = self.rule(said)
        if not pairs:
            return nothing_written(image, "mask tokens", said)
        mask = np.zeros((image.height, image.width), bool)
        resized = np.array(image.resize((SIDE, SIDE)))
        pixels = torch.from_numpy(resized).permute(2, 0, 1)[None].to(self.device, torch.float32)
        for pair in pairs:
            # The decoder changes its codes in place.
            logits = self.decoder.forward_with_codes(pixels, torch.tensor([pair], device=self.device))
            own = F.interpolate(logits.float(), size=mask.shape, mode="bilinear")[0, 0]
            mask |= (own > THRESHOLD).cpu().numpy()
        note = "a mask token is missing" if any(MISSING in pair for pair in pairs) else ""
        note = note or ("markup in the expression" if marked else "")
        # The published evaluation decides by the mask whether there is a target.
        return Answer(mask, note=note, raw=said)

    def _said(self, image, question):
        talk = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
        asked = self.processor.apply_chat_template(
            talk, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(self.device)
        tokens = self.network.generate(**asked, max_new_tokens=MOST_TOKENS, do_sample=False, top_p=1.0)
        return self.processor.tokenizer.decode(tokens[0, asked["input_ids"].shape[1] :], skip_special_tokens=False)


def one_mask(text):
    """The pair of codes of RefCOCO's evaluation: [(first, second)], or [] without a token of the first level."""
    pair = [MISSING, MISSING]
    for token in _tokens(text):
        level, code = divmod(token, CODES)
        if level < len(pair):
            pair[level] = code
    return [] if pair[0] == MISSING else [tuple(pair)]


def several_masks(text):
    """The pairs of codes of gRefCOCO's evaluation, each a mask: [(first, second), ...]."""
    tokens = _tokens(text)
    if len(tokens) % 2:
        # As published, only if the number of tokens is odd: groups are cut to two tokens or filled up with a missing
        # one, and a group of several tokens without an end token is dropped.
        groups = [_tokens(found.group(1)) for found in GROUP.finditer(text) if _is_mended(found)]
        tokens = [token for group in groups for token in (group + [None])[:2]]
    pairs = [(first, second) for first, second in zip(tokens[::2], tokens[1::2]) if first < CODES]
    return [(first, _second(second)) for first, second in pairs]


def _is_mended(group):
    """Whether a group is repaired: any group with an end token, and a group of one token without it."""
    return group.group(2) is not None or len(_tokens(group.group(1))) == 1


def _second(token):
    return token - CODES if token is not None and CODES <= token < 2 * CODES else MISSING


def _tokens(text):
    return [int(number) for number in TOKEN.findall(text)]


def _decoder(repository, weights):
    """The mask tokenizer. Its module is imported without its packages, which want training's libraries; the weights of
    SAM 2 are all in the file of the tokenizer."""
    # This variable would change the network.
    os.environ.pop("MASK_TOKENIZER_NUM_MASK_TOKEN", None)
    for name in ("projects", "projects.samtok", "projects.samtok.models"):
        package = types.ModuleType(name)
        package.__path__ = [os.path.join(repository, *name.split("."))]
        sys.modules[name] = package
    official = importlib.import_module("projects.samtok.models.sam2")
    official.load_checkpoint_with_prefix = lambda *_, **__: {}
    settings = official.VQ_SAM2Config(
        sam2_config=official.SAM2Config(ckpt_path="none"), codebook_size=CODES, codebook_depth=2,
        shared_codebook=False, latent_dim=256,
    )  # fmt: skip
    decoder = official.VQ_SAM2(settings).eval()
    try:
        decoder.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=True)
    except RuntimeError as error:
        raise ValueError("%s does not fit the mask tokenizer: %s" % (weights, str(error)[:600]))
    return decoder


if __name__ == "__main__":
    serve(SamTok)
