"""LISA, from its official repository (dvlab-research/LISA, commit 3cb2d43, Apache-2.0), which you check out yourself.

Options: repo=FOLDER, weights=FOLDER (a checkout of e.g. xinlai/LISA-7B-v1), clip=FOLDER (of
openai/clip-vit-large-patch14), mode=forced|generate.

forced: the answer "[SEG]." is put into the input and the mask is read at its token, as in the published validation; the
expressions of an image form one padded batch, as in the original. generate: the model writes the answer (greedy, 512
tokens at most); the masks of all its [SEG] are joined, and without one the mask is empty.
"""

import numpy as np
import torch
from research_code import (
    OfLast,
    add_repository,
    all_weights,
    architecture,
    as_words,
    by_picture,
    check_torchvision,
    choice,
    cuda_is,
    for_torchvision,
    need,
    sam_pixels,
)
from worker_sdk import Answer, git_revision, nothing_written, serve, sha256_of

PHRASE = "<image>\n What is %s in this image? Please output segmentation mask."
SENTENCE = "<image>\n %s Please output segmentation mask."
MOST_TOKENS = 512
# Token limit of a training text; the image takes 255 tokens more than its own.
LONGEST_TEXT, PATCHES = 512, 255
# The encoder of SAM ViT-H.
SAM = {"embed_dim": 1280, "depth": 32, "num_heads": 16, "global_attn_indexes": [7, 15, 23, 31]}


class Lisa(object):
    name = "lisa"
    # The tags distinguish sentences from phrases.
    tags = True

    def __init__(self, config, device):
        repository = add_repository(config, "https://github.com/dvlab-research/LISA", "model/LISA.py")
        weights = need(config, "weights", "a folder of weights")
        clip = need(config, "clip", "a folder of openai/clip-vit-large-patch14")
        self.mode = choice(config, "mode", "the way of answering", ("forced", "generate"), "forced")
        # Expressions of one image, which SAM embeds once. The official code generates one answer at a time.
        self.max_batch = 8 if self.mode == "forced" else 1
        self.device = cuda_is(device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        check_torchvision()
        # These look for torchvision when they are imported; they must not find the stand-in.
        from transformers import (  # noqa: F401
            AutoTokenizer,
            CLIPImageProcessor,
            CLIPVisionModel,
            GenerationConfig,
            LlamaForCausalLM,
        )

        for_torchvision()
        from model import LISA as official  # noqa: N811 (a module)
        from model.llava import conversation
        from model.llava.mm_utils import tokenizer_image_token
        from model.llava.model import llava_arch
        from model.llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
        from model.segment_anything.build_sam import _build_sam
        from model.segment_anything.utils.transforms import ResizeLongestSide

        # The weights name the hub's CLIP; load the given folder instead, whatever its name, with all its weights.
        llava_arch.build_vision_tower = lambda settings, **more: CLIPVisionTower(clip, settings, **more)
        numbers = {"encoder_%s" % k: v for k, v in architecture(config, SAM).items()}
        official.build_sam_vit_h = lambda checkpoint: _build_sam(checkpoint=checkpoint, **numbers)
        self.encode = tokenizer_image_token
        self.conversation = conversation.conv_templates["llava_v1"]
        self.longest_side = ResizeLongestSide
        self.clip_pixels = CLIPImageProcessor.from_pretrained(clip)
        self.tokenizer = AutoTokenizer.from_pretrained(
            weights, model_max_length=LONGEST_TEXT, padding_side="right", use_fast=False
        )
        self.tokenizer.pad_token = self.tokenizer.unk_token
        self.segment_id = self.tokenizer("[SEG]", add_special_tokens=False).input_ids[0]
        self.network = self._load(official.LISAForCausalLM, weights, clip)
        self.network.get_visual_embs = OfLast(self.network.get_visual_embs)
        self.network.encode_images = OfLast(self.network.encode_images)
        self.pixels = OfLast(self._pixels)
        self.revision = git_revision(repository)
        self.weights_sha256 = sha256_of(weights, clip)

    def _load(self, kind, weights, clip):
        """The official network, of class `kind`, with the weights, and the CLIP of the folder given."""
        # Imported before the stand-in for torchvision was there, see above.
        from transformers import CLIPVisionModel, GenerationConfig

        loaded = kind.from_pretrained(
            weights, low_cpu_mem_usage=True, torch_dtype=self.dtype, vision_tower=clip, seg_token_idx=self.segment_id,
            output_loading_info=True,
        )  # fmt: skip
        # Some checkpoints include CLIP, but chat.py uses the hub's all the same. Rotary frequencies are stored by some
        # versions of transformers and computed by all.
        network = all_weights(loaded, weights, "LISA", spare=["model.vision_tower."], computed=["rotary_emb.inv_freq"])
        load = CLIPVisionModel.from_pretrained
        CLIPVisionModel.from_pretrained = lambda path, **_: _whole_clip(load(path, output_loading_info=True))
        network.get_model().initialize_vision_modules(network.get_model().config)
        ends = {key: getattr(self.tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        network.config.update(ends)
        # The weights may come with settings that draw at random; masks are read in a step that sees the whole text.
        network.generation_config = GenerationConfig(do_sample=False, use_cache=False, **ends)
        return network.to(self.device, self.dtype).eval()

    @torch.no_grad()
    def segment(self, images, expressions, tags):
        answers = [None] * len(images)
        for image, places in by_picture(images):
            asked = [self._asked(expressions[k], tags[k]) for k in places]
            if self.mode == "forced":
                found = self._forced(image, asked)
            else:
                found = [self._written(image, *one) for one in asked]
            for k, answer in zip(places, found):
                answers[k] = answer
        return answers

    def _asked(self, expression, tags):
        """The question, and a note if the expression held markup."""
        is_reasoning = "sentence" in tags or "phrase" in tags
        # Reasoning questions keep their capitals.
        written = expression.strip() if is_reasoning else expression.strip().lower()
        words, marked = as_words(written, self.tokenizer)
        note = "markup in the expression" if marked else ""
        if "sentence" in tags:
            return SENTENCE % words, note
        return PHRASE % words, note

    def _pixels(self, image):
        """Pixels for CLIP and for SAM, and the size of SAM's image without padding."""
        seen = np.array(image)
        clip = self.clip_pixels.preprocess(seen, return_tensors="pt")["pixel_values"]
        sam, size = sam_pixels(image, self.longest_side)
        return clip.to(self.device, self.dtype), sam[None].to(self.device, self.dtype), size

    def _encoded(self, question, answer):
        talk = self.conversation.copy()
        talk.messages = [[talk.roles[0], question.replace("<image>", "<im_start><image><im_end>")]]
        talk.messages.append([talk.roles[1], answer])
        return self.encode(talk.get_prompt(), self.tokenizer, return_tensors="pt")

    def _forced(self, image, asked):
        clip, sam, size = self.pixels(image)
        ids = [self._encoded(question, "[SEG].") for question, _ in asked]
        pad = self.tokenizer.pad_token_id
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad).to(self.device)
        output = self.network.model_forward(
            images=sam, images_clip=clip, input_ids=padded, labels=None, attention_masks=padded.ne(pad),
            offset=torch.tensor([0, len(ids)], device=self.device), masks_list=None,
            label_list=[torch.empty(image.height, image.width)], resize_list=[size], inference=True,
        )  # fmt: skip
        masks = output["pred_masks"][0]
        if len(masks) != len(asked):
            raise RuntimeError("%d masks for %d expressions" % (len(masks), len(asked)))
        return [Answer(mask > 0, note=note or _note(one)) for mask, one, (_, note) in zip(masks, ids, asked)]

    def _written(self, image, question, note):
        clip, sam, size = self.pixels(image)
        ids = self._encoded(question, "").to(self.device)
        output, masks = self.network.evaluate(
            clip, sam, ids[None], [size], [(image.height, image.width)], max_new_tokens=MOST_TOKENS
        )
        said = self.tokenizer.decode(output[0, len(ids) :])
        if not len(masks[0]):
            return nothing_written(image, "[SEG]", said)
        return Answer((masks[0] > 0).any(dim=0), note=note or _note(ids), raw=said)


def _note(ids):
    return "text longer than the %d tokens of training" % LONGEST_TEXT if len(ids) + PATCHES > LONGEST_TEXT else ""


def _whole_clip(loaded):
    return all_weights(loaded, "the folder of CLIP", "CLIP's vision tower", spare=["text_", "logit_scale", "visual_"])


if __name__ == "__main__":
    serve(Lisa)
