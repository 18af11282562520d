"""X-SAM, from its official repository (wanghao9610/X-SAM, commit 2e76946, Apache-2.0), which you check out yourself.

Options: repo=FOLDER, weights=FILE (pytorch_model.bin of hao9610/X-SAM), inits=FOLDER (the README's: the configurations
and processors of Phi-3-mini-4k-instruct, siglip2-so400m-patch14-384, sam-vit-large and
mask2former-swin-large-coco-panoptic; their weights are not needed), recipe=aaai26|main, mode=forced|generate.

recipe: the published evaluation (aaai26) has a line break before the question and pads SigLIP's image to a square with
grey; the repository's main branch does neither. forced: the answer "<SEG>." is put into the input, as published. The
original draws from ten questions and five answers at random; here the first are used. generate: the model writes the
answer (greedy, 128 tokens at most); its first <SEG> is read, without one the mask is empty. The mask is that of the
query with the highest score, however low: X-SAM cannot predict that there is no target.
"""

import os
import re
import sys
import types

import torch
from PIL import Image
from research_code import add_repository, architecture, check_torchvision, choice, installed, need, not_here, stand_in
from worker_sdk import Answer, git_revision, nothing_written, serve, sha256_of

INITS = {
    "phi": "Phi-3-mini-4k-instruct", "siglip": "siglip2-so400m-patch14-384", "sam": "sam-vit-large",
    "mask2former": "mask2former-swin-large-coco-panoptic",
}  # fmt: skip
# What the published configuration says and the folders do not.
PUBLISHED = {"layers": [6, 12, 18, 24], "connector": 512, "channels": [512, 1024, 2048]}
LONGEST_TEXT = 2319
MOST_TOKENS = 128
PICTURE = -200
NOWHERE = (1, 0)
GREY = (127, 127, 127)
SEGMENT = "<SEG>"
# Markup in an expression: the repository fails on it or drops it.
NOT_WORDS = re.compile(r"</?p>|<image>|<region>|<\|[a-z\d]+\|>|\|\|")
OLD_NAMES = {"visual_encoder.": "vision_encoder.", "segmentor.logit_scale": "segmentor.class_predictor.logit_scale"}
# Used for points and boxes only; the released file may lack it.
SPARE = "segmentor.shared_image_embedding.positional_embedding"
# Their own __init__ files import training's libraries.
PACKAGES = (
    "structures", "dataset", "dataset.utils", "dataset.map_fns", "dataset.map_fns.dataset_map_fns",
    "dataset.process_fns", "dataset.process_fns.postprocess_fns", "dataset.processors",
)  # fmt: skip


class XSam(object):
    name = "xsam"
    # In larger batches, the official code mixes up the phrases.
    max_batch = 1

    def __init__(self, config, device):
        repository = add_repository(config, "https://github.com/wanghao9610/X-SAM", "xsam/xsam/model/xsam.py")
        weights = need(config, "weights", "pytorch_model.bin of X-SAM")
        if os.path.isdir(weights):
            raise ValueError("%s is a folder of DeepSpeed; give the pytorch_model.bin that is made of it" % weights)
        inits = need(config, "inits", "the folder of configurations and processors")
        folders = {key: need({key: os.path.join(inits, name)}, key, name) for key, name in INITS.items()}
        self.mode = choice(config, "mode", "the way of answering", ("forced", "generate"), "forced")
        self.is_published = choice(config, "recipe", "the evaluation", ("aaai26", "main"), "aaai26") == "aaai26"
        self.device = torch.device(device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        numbers = architecture(config, PUBLISHED)
        check_torchvision()
        official = _import(os.path.join(repository, "xsam"))
        official.xsam.get_device = lambda: self.device
        self.questions, self.sample, self.postprocess = official.questions, official.DataSample, official.postprocess
        self.siglip_pixels = official.SiglipImageProcessor.from_pretrained(folders["siglip"])
        self.sam_pixels = official.SamImageProcessor.from_pretrained(folders["sam"], ignore_index=0)
        network = _network(official, folders, numbers, self.dtype)
        _load(network, weights)
        network.llm.config.use_cache = False
        self.network = network.eval().to(self.device)
        # Turns the frequencies of its positions to that precision, too, as the official scripts do.
        self.network.llm.to(self.dtype)
        self.tokenizer = network.tokenizer
        self.revision = git_revision(repository)
        self.weights_sha256 = sha256_of(weights)

    @torch.no_grad()
    def segment(self, images, expressions):
        return [self._one(image, expression) for image, expression in zip(images, expressions)]

    def _one(self, image, expression):
        asked, phrase, note = self._asked(expression)
        pictures, sample = self._pictures(image)
        said = "<SEG>."
        if self.mode == "generate":
            tokens, said = self._written(asked, pictures, sample)
            if self.network.seg_token_idx not in tokens:
                return nothing_written(image, SEGMENT, said)
            note = note or ("only the first of several <SEG>" if said.count(SEGMENT) > 1 else "")
            answer = tokens[: tokens.index(self.network.seg_token_idx) + 1]
        else:
            answer = self._encoded("<SEG>.<|end|>") + self._encoded("\n")
        _, output = self._run(asked + answer, phrase, pictures, sample, mode="tensor")
        sizes = {"image_sizes": sample.image_sizes, "scaled_sizes": sample.scaled_sizes}
        found = self.postprocess(output, use_bg_embeds=True, **sizes)[0]
        # 255 stands for the ground.
        mask = found["segmentation"] == 1
        return Answer(mask, score=_score(output), note=note, raw=said)

    def _run(self, ids, phrase, pictures, sample, **more):
        begin, end = phrase
        here = {
            "input_ids": ids,
            "cond_ids": [0 if begin <= k <= end else -1 for k in range(len(ids))],
            "seg_ids": [0 if k == self.network.seg_token_idx else -1 for k in ids],
        }
        data = {name: torch.tensor([values], device=self.device) for name, values in here.items()}
        return self.network({**data, **pictures}, sample, do_postprocess=False, **more)

    def _written(self, asked, pictures, sample):
        """What the language model writes: its tokens, and their text."""
        from transformers import GenerationConfig

        end = self.tokenizer.convert_tokens_to_ids("<|end|>")
        settings = GenerationConfig(
            max_new_tokens=MOST_TOKENS, do_sample=False, num_beams=1, pad_token_id=self.tokenizer.pad_token_id,
            bos_token_id=self.tokenizer.bos_token_id, eos_token_id=[self.tokenizer.eos_token_id, end],
        )  # fmt: skip
        # Without the decoder only the text is generated; the official step to the mask fails at a second <SEG>.
        decoder, self.network.segmentor.decoder = self.network.segmentor.decoder, None
        try:
            output, _ = self._run(asked, NOWHERE, pictures, sample, mode="predict", generation_config=settings)
        finally:
            self.network.segmentor.decoder = decoder
        tokens = output.sequences[0].tolist()
        return tokens, self.tokenizer.decode(tokens)

    def _asked(self, expression):
        """Ids of the question, the places of its phrase, and whether that had to be cut."""
        written = expression.strip().lower()
        words = NOT_WORDS.sub(" ", written).strip()
        note = "markup in the expression" if NOT_WORDS.search(written) else ""
        begin = [self.tokenizer.bos_token_id, *self._encoded("<|user|>\n"), PICTURE]
        answer = len(self._encoded("<SEG>.<|end|>") + self._encoded("\n"))
        room = LONGEST_TEXT - len(begin) - answer
        question = self._question(words)
        while len(question) > room:
            # The official code cuts at the end, so it loses the tokens that it looks for and fails.
            note = "text cut to %d tokens" % LONGEST_TEXT
            words = words[: len(words) * room // len(question)]
            question = self._question(words)
        ids = begin + question
        return ids, (ids.index(self.network.pstart_token_idx), ids.index(self.network.pend_token_idx)), note

    def _question(self, words):
        question = self.questions[0].replace("{phrase}", "<p>%s</p>" % words)
        return self._encoded(("\n" if self.is_published else "") + question + "<|end|>\n<|assistant|>\n")

    def _encoded(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _pictures(self, image):
        seen = _square(image) if self.is_published else image
        layout = {"return_tensors": "pt", "input_data_format": "channels_last"}
        siglip = self.siglip_pixels.preprocess(seen, **layout)["pixel_values"]
        sam = self.sam_pixels.preprocess(image, **layout)
        sample = self.sample()
        sample.set_metainfo(
            {
                "task_names": ["img_refseg"],
                "image_sizes": [(image.height, image.width)],
                "scaled_sizes": [sam["scaled_sizes"][0].tolist()],
            }
        )
        pictures = {"pixel_values": siglip.to(self.device), "extra_pixel_values": sam["pixel_values"].to(self.device)}
        return pictures, sample


def _score(output):
    """The probability of the phrase against background, for the query whose mask is taken."""
    return float(output.class_queries_logits[0].float().softmax(-1)[:, 0].max())


def _square(image):
    side = max(image.size)
    made = Image.new("RGB", (side, side), GREY)
    made.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return made


def _import(folder):
    """What is used of the repository, imported without the packages around it."""
    # These look for torchvision when they are imported.
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        Phi3ForCausalLM,  # noqa: F401
        SiglipImageProcessor,
        SiglipVisionModel,
    )

    sys.path.insert(0, folder)
    if not installed("peft"):
        stand_in("peft", get_peft_model=not_here, prepare_model_for_kbit_training=not_here, PeftType=object)
    if not installed("panopticapi"):
        stand_in("panopticapi.utils", rgb2id=not_here)
    import xsam  # noqa: F401 (before its packages)

    for name in PACKAGES:
        stand_in("xsam." + name).__path__ = [os.path.join(folder, "xsam", *name.split("."))]
    from xsam.dataset.map_fns.dataset_map_fns.img_refseg_map_fn import SEG_QUESTIONS
    from xsam.dataset.process_fns.postprocess_fns.img_refseg_process_fn import img_refseg_postprocess_fn
    from xsam.dataset.processors.image_processing_sam import SamImageProcessor
    from xsam.model import XSamModel
    from xsam.model import xsam as module
    from xsam.model.segmentors import XSegmentor
    from xsam.model.segmentors.mask2former import Mask2FormerConfig, Mask2FormerModel
    from xsam.model.segmentors.sam import SamConfig, SamModel
    from xsam.model.utils import frame_transpose_temporal_process_fn
    from xsam.structures.data_sample import DataSample

    return types.SimpleNamespace(
        xsam=module, questions=SEG_QUESTIONS, DataSample=DataSample, postprocess=img_refseg_postprocess_fn,
        SiglipImageProcessor=SiglipImageProcessor, SamImageProcessor=SamImageProcessor, AutoConfig=AutoConfig,
        AutoModelForCausalLM=AutoModelForCausalLM, AutoTokenizer=AutoTokenizer, SiglipVisionModel=SiglipVisionModel,
        XSamModel=XSamModel, XSegmentor=XSegmentor, Mask2FormerConfig=Mask2FormerConfig, SamConfig=SamConfig,
        Mask2FormerModel=Mask2FormerModel, SamModel=SamModel, temporal=frame_transpose_temporal_process_fn,
    )  # fmt: skip


def _network(official, folders, numbers, dtype):
    """The network of the published configuration, from the configurations of its parts."""
    from transformers.modeling_utils import no_init_weights

    o = official
    with no_init_weights():
        llm = o.AutoModelForCausalLM.from_config(
            o.AutoConfig.from_pretrained(folders["phi"]), torch_dtype=dtype, attn_implementation="sdpa"
        )
        siglip = o.SiglipVisionModel._from_config(
            o.AutoConfig.from_pretrained(folders["siglip"]).vision_config, torch_dtype=dtype
        )
        sam = o.SamModel._from_config(
            o.SamConfig.from_pretrained(folders["sam"]), torch_dtype=dtype, attn_implementation="eager"
        )
        settings = o.Mask2FormerConfig.from_pretrained(
            folders["mask2former"], use_backbone=False, feature_channels=numbers["channels"], num_feature_levels=3,
            ignore_value=255, ignore_label=-100, background_label=-1, use_text_cross_attn=False, use_zero_init=False,
            head_cls_type="learn", use_repeat_cond=False, attn_implementation="pytorch_v1",
        )  # fmt: skip
        decoder = o.Mask2FormerModel._from_config(settings, torch_dtype=dtype)
    segmentor = o.XSegmentor(encoder=sam, decoder=decoder, torch_dtype=dtype, use_memory=False, init_decoder=False)
    tokenizer = {"type": o.AutoTokenizer.from_pretrained, "pretrained_model_name_or_path": folders["phi"]}
    return o.XSamModel(
        llm=llm, vision_encoder=siglip, segmentor=segmentor, tokenizer=dict(tokenizer, padding_side="right"),
        use_dual_encoder=True, use_vision_sampler=True, temporal_process_fn=o.temporal,
        extra_temporal_process_fn=o.temporal, connector_type="conv", cond_type="phrase",
        extra_select_layers=numbers["layers"], connector_hidden_dim=numbers["connector"],
        connector_scale_factor=[4, 2, 1, 0.5], sampler_input_feat="extra_pixel_values", sampler_pooling_mode="mean",
        sampler_pooling_kernel_size=4, special_tokens=["<SEG>", "<p>", "</p>"], use_activation_checkpointing=False,
    )  # fmt: skip


def _load(network, weights):
    """Load strictly: the repository silently skips weights with unknown names, and the released file has old names."""
    state = torch.load(weights, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    for old, new in OLD_NAMES.items():
        state = {new + k[len(old) :] if k.startswith(old) else k: v for k, v in state.items()}
    own = network.full_state_dict()
    wrong = sorted(set(own) - set(state) - {SPARE}) + sorted(set(state) - set(own))
    wrong += [k for k in own if k in state and own[k].shape != state[k].shape]
    if wrong:
        raise ValueError("%s does not fit X-SAM: %d weights, e.g. %s" % (weights, len(wrong), wrong[0]))
    network.load_state_dict(state, strict=SPARE in state)


if __name__ == "__main__":
    serve(XSam)
