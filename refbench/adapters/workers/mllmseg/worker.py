"""MLLMSeg, from its official repository (jcwang0602/MLLMSeg, commit a8fceda, MIT), which you check out yourself.

Options: repo=FOLDER, weights=FOLDER (a checkout of e.g. jcwang0602/MLLMSeg_InternVL2_5_8B_RES), mode=forced|generate,
task=res|gres (gres for the ..._GRES weights).

forced: the answer "Sure,EXPRESSION:[SEG]." is put into the input, and the mask is read at its token. The published
evaluation does the same, but puts all expressions of an image into one conversation, where each slightly changes the
others' masks; here each has its own. generate: the model writes the answer (greedy, 128 tokens at most); without [SEG]
the mask is empty, and several are joined by the larger probability.

gres, forced: if the model would have written "[REJ]" instead of the given "[SEG]", it predicts no target. The mask is
kept all the same, as in the published evaluation for wrongly rejected targets.
"""

import importlib.util
import json
import os

import torch
from research_code import (
    NoDropPath,
    add_repository,
    all_weights,
    as_words,
    check_torchvision,
    choice,
    for_torchvision,
    need,
    not_here,
    stand_in,
)
from torch.nn import functional as F
from worker_sdk import Answer, git_revision, nothing_written, serve, sha256_of

THRESHOLD = 0.5
MOST_TOKENS = 128
END = "<|im_end|>"


class MllmSeg(object):
    name = "mllmseg"
    # The official code takes one conversation at a time.
    max_batch = 1

    def __init__(self, config, device):
        repository = add_repository(config, "https://github.com/jcwang0602/MLLMSeg", "mllmseg/mllmseg_internvl.py")
        weights = need(config, "weights", "a folder of weights")
        self.mode = choice(config, "mode", "the way of answering", ("forced", "generate"), "forced")
        self.task = choice(config, "task", "what the weights were trained for", ("res", "gres"), "res")
        self.device = torch.device(device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        check_torchvision()
        # These look for torchvision when they are imported; they must not find the stand-in.
        import accelerate  # noqa: F401
        import peft  # noqa: F401
        from transformers import (  # noqa: F401  # noqa: F401
            AutoModel,
            AutoTokenizer,
            GenerationConfig,
            LlamaForCausalLM,
            LlamaTokenizer,
            Qwen2ForCausalLM,
        )

        _stand_ins()
        import internvl.model.internvl_chat  # noqa: F401
        from mllmseg import constants
        from mllmseg.dataset import build_transform, preprocess_internvl2_5
        from mllmseg.mllmseg_internvl import MLLMSeg

        self.preprocess = preprocess_internvl2_5
        self.transform = build_transform(is_train=False, input_size=448)
        self.tokenizer = _tokenizer_class(weights).from_pretrained(weights, trust_remote_code=False, use_fast=False)
        loaded = MLLMSeg.from_pretrained(
            weights, low_cpu_mem_usage=True, torch_dtype=self.dtype, data_type=self.dtype, tokenizer=self.tokenizer,
            # Without it the weights of the decoder are passed over in silence.
            init_decoder=True, output_loading_info=True,
        )  # fmt: skip
        network = all_weights(loaded, weights, "MLLMSeg")
        self.network = network.eval().to(self.device)
        token = self.tokenizer.convert_tokens_to_ids
        network.img_context_token_id = token(constants.IMG_CONTEXT_TOKEN)
        network.seg_token_idx = token(constants.SEG_TOKEN)
        network.rej_token_idx = token(constants.REJ_TOKEN)
        self.revision = git_revision(repository)
        self.weights_sha256 = sha256_of(weights)

    @torch.no_grad()
    def segment(self, images, expressions):
        return [self._one(image, expression) for image, expression in zip(images, expressions)]

    def _one(self, image, expression):
        plain, marked = as_words(expression.lower(), self.tokenizer)
        words = plain.strip().strip(".")
        # As the evaluation script does it, before the network's own precision.
        pixels = self.transform(image)[None].to(torch.float16)
        if self.mode == "forced":
            said = "Sure,%s:[SEG]." % words
            ids = self._encoded(words, said)
        else:
            ids, said = self._generated(pixels, words)
        masks, rejected = self._masks(pixels, ids)
        if not len(masks):
            return nothing_written(image, "[SEG]", said)
        share = masks.float().max(dim=0)[0][None, None]
        own = F.interpolate(share, size=(image.height, image.width), mode="bilinear", align_corners=False)[0, 0]
        # RES cannot predict no target; for GRES the token predicts it, not the mask.
        no_target = None if self.task == "res" else rejected and self.mode == "forced"
        note = "[REJ] in place of [SEG]" if no_target else "markup in the expression" if marked else ""
        return Answer(own >= THRESHOLD, score=float(own.max()), no_target=no_target, note=note, raw=said)

    def _masks(self, pixels, ids):
        """Shares (n, 448, 448), one for each [SEG] of the text, and whether the network would have written [REJ] there.

        The network's `output_ids` are the text with its own choice in place of each [SEG] or [REJ].
        """
        output = self.network(
            pixel_values=pixels.to(self.device),
            input_ids=ids.to(self.device),
            attention_mask=torch.ones_like(ids).to(self.device),
            image_flags=torch.tensor([1], dtype=torch.long, device=self.device),
            gt_masks=None,
            reeval=False,
            inference=True,
        )
        return output["pred_masks"][0], bool((output["output_ids"][0] == self.network.rej_token_idx).any())

    def _encoded(self, words, answer):
        # The spelling, with a space before "What" and none before "in", is the original's.
        question = "<image>\n What are %sin this image? Please output segmentation masks." % words
        talk = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        made = self.preprocess(
            "internvl2_5", [talk], self.tokenizer, [self.network.num_image_token], group_by_length=False,
            use_packed_ds=False, ds_name="test",
        )  # fmt: skip
        return made["input_ids"].to(torch.int)

    def _generated(self, pixels, words):
        asked = self._encoded(words, "")
        asked = asked[:, : asked.shape[1] - len(self.tokenizer(END + "\n", add_special_tokens=False).input_ids)]
        # It returns the features of the picture too.
        tokens, _ = self.network.generate(
            pixel_values=pixels.to(self.device, self.dtype),
            input_ids=asked.long().to(self.device),
            attention_mask=torch.ones_like(asked).long().to(self.device),
            max_new_tokens=MOST_TOKENS,
            do_sample=False,
            num_beams=1,
            eos_token_id=self.tokenizer.convert_tokens_to_ids(END),
            pad_token_id=self.tokenizer.pad_token_id,
        )
        written = tokens[0].cpu()
        begin = self.network.language_model.generation_config.bos_token_id
        if len(written) and begin is not None and int(written[0]) == begin:
            # transformers 4.37 puts a BOS token before the output; it would shift the masks by one position.
            written = written[1:]
        text = self.tokenizer.decode(written, skip_special_tokens=False)
        return torch.cat([asked, written[None].to(asked.dtype)], dim=1), text


def _tokenizer_class(weights):
    """InternLM2's (of the 2B and 8B networks) is not in transformers: the weights bring its code, and so does the
    repository, which is trusted already."""
    from transformers import AutoTokenizer

    with open(os.path.join(weights, "tokenizer_config.json"), encoding="utf-8") as file:
        is_internlm = json.load(file).get("tokenizer_class") == "InternLM2Tokenizer"
    if not is_internlm:
        return AutoTokenizer
    from internvl.model.internlm2.tokenization_internlm2 import InternLM2Tokenizer

    return InternLM2Tokenizer


def _stand_ins():
    """Packages that the imports of the repository ask for; where a real one is installed, it is taken."""
    if importlib.util.find_spec("timm") is None:
        stand_in("timm.models.layers", DropPath=NoDropPath)
    for_torchvision()
    if importlib.util.find_spec("termcolor") is None:
        stand_in("termcolor", colored=lambda text, *_, **__: text)
    for name in ("decord", "imageio"):
        # Of videos.
        if importlib.util.find_spec(name) is None:
            stand_in(name, VideoReader=not_here)


if __name__ == "__main__":
    serve(MllmSeg)
