"""Makes a small random checkpoint by an official repository's own code, and what that code makes of a picture.

    python official_checkpoints.py lavt|lavt_one|magnet|mllmseg|mllmseg_gres REPOSITORY FOLDER

writes into FOLDER the checkpoint in the layout of the released ones, `picture.png`, `expression.txt` and
`expected.npy`. Run by an interpreter that has what the repository needs, with worker_sdk's folder on PYTHONPATH.
"""

import argparse
import importlib
import json
import os
import sys

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

WORKERS = os.path.join(os.path.dirname(__file__), "..", "..", "refbench", "adapters", "workers")
NUMBERS = {
    "lavt": {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "window_size": 12},
    "magnet": {
        "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": 12, "encoder_layers": 1,
        "decoder_layers": 3, "hidden_dim": 32, "feedforward_dim": 32, "attention_heads": 4,
        "language_layers": [1, 2, 3, 4],
    },
    "lisa": {"embed_dim": 16, "depth": 2, "num_heads": 2, "global_attn_indexes": [1]},
}  # fmt: skip
EXPRESSION = "The red ball on the LEFT of a man, who is in front of it and of all the other balls in it"


def picture(folder):
    cells = np.random.default_rng(0).integers(0, 255, (6, 9, 3)).astype(np.uint8)
    image = Image.fromarray(np.kron(cells, np.ones((40, 40, 1), np.uint8))).resize((320, 213))
    image.save(os.path.join(folder, "picture.png"))
    return Image.open(os.path.join(folder, "picture.png")).convert("RGB")


def bert(folder, layers):
    words = "the a man red ball left of on in front who is".split()
    letters = list("abcdefghijklmnopqrstuvwxyz,.")
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *("##" + x for x in letters)]
    entries = list(dict.fromkeys(entries))
    config = {
        "model_type": "bert", "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": layers,
        "intermediate_size": 32, "vocab_size": len(entries), "max_position_embeddings": 20, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "hidden_act": "gelu", "pad_token_id": 0,
    }  # fmt: skip
    place = os.path.join(folder, "bert")
    os.makedirs(place)
    with open(os.path.join(place, "config.json"), "w") as file:
        json.dump(config, file)
    with open(os.path.join(place, "vocab.txt"), "w") as file:
        file.write("\n".join(entries) + "\n")
    return place


def load_worker(name):
    """The worker's own way of building the network, with its loading of weights replaced by keeping what was drawn."""
    sys.path.insert(0, os.path.join(WORKERS, name))
    module = importlib.import_module("worker")
    module.load_checkpoint = lambda path: {"model": None, "bert_model": None}
    module.load_strictly = lambda network, state, what: network
    return module


def swin(kind, repository, folder):
    name = "magnet" if kind == "magnet" else "lavt"
    place = bert(folder, 4 if name == "magnet" else 1)
    weights = os.path.join(folder, "weights.pth")
    open(weights, "w").close()
    torch.manual_seed(4)
    module = load_worker(name)
    config = {"repo": repository, "weights": weights, "bert": place, "kind": kind}
    config["architecture"] = json.dumps(NUMBERS[name])
    model = (module.MagNet if name == "magnet" else module.Lavt)(config, "cpu")
    network = model.network
    if name == "lavt":
        with torch.no_grad():
            # Random channels differ by a constant; balanced, the mask is neither empty nor full.
            output = _lavt(model, kind, picture(folder))
            network.classifier.conv1_1.bias[0] += (output[:, 1] - output[:, 0]).median()
    saved = {"model": network.state_dict(), "epoch": 39, "args": argparse.Namespace(model=kind)}
    if getattr(model, "language", None) is not None:
        saved["bert_model"] = model.language.state_dict()
    torch.save(saved, weights)
    image = picture(folder)
    with torch.no_grad():
        if name == "lavt":
            mask = _lavt(model, kind, image).argmax(1)
            own = F.interpolate(mask[None].float(), (image.height, image.width))[0, 0].bool()
        else:
            output = network(*_inputs(model, image, 480))
            size = image.height, image.width
            resized = F.interpolate(output["pred_masks"], size=size, mode="bilinear", align_corners=True)
            own = (network.semantic_inference(output["pred_logits"], resized)[0] > 0.5)[0]
    return own.numpy()


def _inputs(model, image, side):
    """As the official data set does it, in its own words."""
    pixels = np.asarray(image.resize((side, side), Image.BILINEAR)).astype(np.float32).transpose(2, 0, 1) / 255
    mean, spread = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = (pixels - mean[:, None, None]) / spread[:, None, None]
    ids, attention = [0] * 20, [0] * 20
    found = model.tokenizer.encode(text=EXPRESSION, add_special_tokens=True)[:20]
    ids[: len(found)] = found
    attention[: len(found)] = [1] * len(found)
    return torch.tensor(pixels, dtype=torch.float32)[None], torch.tensor([ids]), torch.tensor([attention])


def _lavt(model, kind, image):
    pixels, ids, attention = _inputs(model, image, 480)
    if kind == "lavt_one":
        return model.network(pixels, ids, l_mask=attention)
    words = model.language(ids, attention_mask=attention)[0].permute(0, 2, 1)
    return model.network(pixels, words, l_mask=attention.unsqueeze(-1))


def lisa(kind, repository, folder):
    """In both modes what the repository's own chat and validation make of the picture; here only its files are read."""
    sys.path.insert(0, os.path.join(WORKERS, "lisa"))
    sys.path.insert(0, repository)
    import sentencepiece
    from research_code import cuda_is, for_torchvision
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        GenerationConfig,
        LlamaForCausalLM,  # noqa: F401
        LlamaTokenizer,
    )

    for_torchvision()
    cuda_is("cpu")
    from model import LISA as official  # noqa: N811 (a module)
    from model.llava import conversation
    from model.llava.mm_utils import tokenizer_image_token
    from model.llava.model.language_model.llava_llama import LlavaConfig
    from model.segment_anything.build_sam import _build_sam
    from model.segment_anything.utils.transforms import ResizeLongestSide

    numbers = {f"encoder_{k}": v for k, v in NUMBERS["lisa"].items()}
    official.build_sam_vit_h = lambda checkpoint: _build_sam(checkpoint=checkpoint, **numbers)
    torch.manual_seed(1)
    clip = os.path.join(folder, "clip-vit")
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=224, patch_size=14
    )
    CLIPVisionModel(vision).save_pretrained(clip)
    CLIPImageProcessor().save_pretrained(clip)
    text = os.path.join(folder, "text.txt")
    with open(text, "w") as file:
        file.write("What is the man in this image? Please output segmentation mask. A chat between two\n" * 9)
    sentencepiece.SentencePieceTrainer.train(
        input=text, model_prefix=os.path.join(folder, "words"), vocab_size=300, byte_fallback=True, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    tokenizer = LlamaTokenizer(os.path.join(folder, "words.model"))
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.add_tokens("[SEG]")
    tokenizer.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    config = LlavaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=2048, mm_vision_tower=clip, vision_tower=clip, mm_hidden_size=16,
        mm_use_im_start_end=True,
        mm_vision_select_layer=-2, mm_vision_select_feature="patch", train_mask_decoder=True, out_dim=256,
        pad_token_id=0,
    )  # fmt: skip
    segment = tokenizer("[SEG]", add_special_tokens=False).input_ids[0]
    network = official.LISAForCausalLM(config, vision_tower=clip, seg_token_idx=segment).eval()
    network.get_model().initialize_vision_modules(network.get_model().config)
    network.generation_config = GenerationConfig(use_cache=False, pad_token_id=0, eos_token_id=2)

    image = picture(folder)
    pixels = np.array(image)
    clip_pixels = CLIPImageProcessor.from_pretrained(clip)(pixels, return_tensors="pt")["pixel_values"]
    small = ResizeLongestSide(1024).apply_image(pixels)
    own = np.zeros((1024, 1024, 3), np.float32)
    mean, spread = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
    own[: small.shape[0], : small.shape[1]] = (small - mean) / spread
    sam_pixels = torch.from_numpy(own).permute(2, 0, 1)[None].contiguous()

    def prompt(words, answer):
        talk = conversation.conv_templates["llava_v1"].copy()
        talk.messages = []
        question = f"<im_start><image><im_end>\n What is {words} in this image? Please output segmentation mask."
        talk.append_message(talk.roles[0], question)
        talk.append_message(talk.roles[1], answer)
        return tokenizer_image_token(talk.get_prompt(), tokenizer, return_tensors="pt")

    def forced(words):
        ids = prompt(words, "[SEG].")[None]
        return network.model_forward(
            images=sam_pixels, images_clip=clip_pixels, input_ids=ids, labels=None, attention_masks=ids.ne(0),
            offset=torch.tensor([0, 1]), masks_list=None, label_list=[torch.empty(pixels.shape[:2])],
            resize_list=[small.shape[:2]], inference=True,
        )["pred_masks"][0][0]  # fmt: skip

    asked = prompt(EXPRESSION.lower(), "")[None]
    with torch.no_grad():
        say(network, lambda ids: network.model_forward(
            images=sam_pixels, images_clip=clip_pixels, input_ids=ids, labels=None, attention_masks=ids.ne(0),
            offset=torch.tensor([0, 1]), masks_list=None, label_list=[torch.empty(9, 9)], resize_list=[small.shape[:2]],
            inference=True,
        ), asked, [segment, tokenizer.eos_token_id])  # fmt: skip
        found = forced(EXPRESSION.lower()) > 0
        output, written = network.evaluate(clip_pixels, sam_pixels, asked, [small.shape[:2]], [pixels.shape[:2]])
    assert output[0, asked.shape[1] :].tolist() == [segment, tokenizer.eos_token_id]
    np.save(os.path.join(folder, "written.npy"), (written[0][0] > 0).numpy())
    weights = os.path.join(folder, "weights")
    network.model.vision_tower = None
    network.save_pretrained(weights)
    tokenizer.save_pretrained(weights)
    return found.numpy()


SMALLER_SAM2 = {
    "embed_dim = 144": "embed_dim = 8", "stages = [2, 6, 36, 4]": "stages = [1, 1, 2, 1]",
    "global_att_blocks = [23, 33, 43]": "global_att_blocks = [3]", "dim_feedforward = 2048": "dim_feedforward = 16",
    "backbone_channel_list = [1152, 576, 288, 144]": "backbone_channel_list = [64, 32, 16, 8]",
    "num_layers = 4\n": "num_layers = 1\n", "num_layers = 2\n": "num_layers = 1\n", "mlp_dim=2048,": "mlp_dim=16,",
}  # fmt: skip


def byte_tokens(folder, special):
    """A tokenizer of Qwen2's kind that knows single bytes."""
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import bytes_to_unicode

    vocabulary, merges = os.path.join(folder, "vocab.json"), os.path.join(folder, "merges.txt")
    with open(vocabulary, "w") as file:
        json.dump({x: k for k, x in enumerate(bytes_to_unicode().values())}, file)
    with open(merges, "w") as file:
        file.write("#version: 0.2\n")
    tokenizer = Qwen2Tokenizer(
        vocabulary, merges, model_max_length=32768, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.add_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special], special_tokens=True)
    return tokenizer


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sa2va(kind, repository, folder):
    """The code of the hub's folders, with a small SAM 2, which has no numbers in its settings."""
    weights = os.path.join(folder, "weights")
    is_qwen = kind == "sa2va_qwen"
    code = os.path.join(repository, "projects", "sa2va", "hf", "models_qwen3vl" if is_qwen else "models")
    os.makedirs(weights)
    os.environ["HF_MODULES_CACHE"] = os.path.join(folder, "modules")
    from research_code import NoDropPath, cuda_is, for_torchvision, installed, not_here, stand_in
    from transformers import AutoConfig, AutoModel, PreTrainedModel  # noqa: F401

    cuda_is("cpu")
    for_torchvision()
    if not installed("timm"):
        stand_in("timm.models.layers", DropPath=NoDropPath)
    for name, what in (("peft", "LoraConfig"), ("peft", "get_peft_model"), ("einops", "rearrange")):
        if not installed(name):
            setattr(stand_in(name), what, not_here)

    def copy_code():
        for name in os.listdir(code):
            with open(os.path.join(code, name)) as file:
                text = file.read()
            for old, new in SMALLER_SAM2.items() if name == "sam2.py" else ():
                assert old in text
                text = text.replace(old, new)
            with open(os.path.join(weights, name), "w") as file:
                file.write(text)

    copy_code()
    own = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"] if is_qwen else []
    own = own or ["<img>", "</img>", "<IMG_CONTEXT>"]
    tokenizer = byte_tokens(weights, [*own, "[SEG]", "<p>", "</p>", "<vp>", "</vp>"])
    number = tokenizer.convert_tokens_to_ids
    end, segment = number("<|im_end|>"), number("[SEG]")
    language = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "initializer_range": 0.2, "eos_token_id": end, "pad_token_id": number("<|endoftext|>"),
        "bos_token_id": number("<|endoftext|>"), "tie_word_embeddings": False,
    }  # fmt: skip
    if is_qwen:
        from transformers import Qwen2VLImageProcessorFast, Qwen3VLProcessor, Qwen3VLVideoProcessor

        tokenizer.chat_template = CHAT
        pictures = Qwen2VLImageProcessorFast(patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        processor = Qwen3VLProcessor(pictures, tokenizer, Qwen3VLVideoProcessor(), chat_template=CHAT)
        processor.save_pretrained(weights)
        rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
        vision = {
            "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 64,
            "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [0],
        }  # fmt: skip
        settings = {
            "text_config": {**language, "rope_scaling": rope, "head_dim": 16}, "vision_config": vision,
            "tie_word_embeddings": False, "template": "qwen_chat", "eos_token_id": end,
            "pad_token_id": language["pad_token_id"], "image_token_id": number("<|image_pad|>"),
            "video_token_id": number("<|video_pad|>"), "vision_start_token_id": number("<|vision_start|>"),
            "vision_end_token_id": number("<|vision_end|>"),
        }  # fmt: skip
        names = "configuration_sa2va_chat.Sa2VAChatConfigQwen", "modeling_sa2va_qwen.Sa2VAChatModelQwen"
    else:
        tokenizer.save_pretrained(weights)
        vision = {
            "architectures": ["InternVisionModel"], "hidden_size": 64, "num_attention_heads": 4,
            "intermediate_size": 64, "num_hidden_layers": 1, "image_size": 448, "patch_size": 14, "qkv_bias": True,
            "qk_normalization": False, "norm_type": "layer_norm", "drop_path_rate": 0.1, "initializer_factor": 0.1,
        }  # fmt: skip
        settings = {
            "vision_config": vision, "llm_config": {**language, "architectures": ["Qwen2ForCausalLM"]},
            "select_layer": -1, "force_image_size": 448, "downsample_ratio": 0.5, "ps_version": "v2",
            "template": "qwen_chat", "dynamic_image_size": True, "use_thumbnail": True, "max_dynamic_patch": 12,
        }  # fmt: skip
        names = "configuration_sa2va_chat.Sa2VAChatConfig", "modeling_sa2va_chat.Sa2VAChatModel"
    settings |= {"model_type": "sa2va_chat", "auto_map": {"AutoConfig": names[0], "AutoModel": names[1]}}
    with open(os.path.join(weights, "config.json"), "w") as file:
        json.dump({**settings, "architectures": [names[1].partition(".")[2]]}, file)
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(weights, trust_remote_code=True)
    network = AutoModel.from_config(config, trust_remote_code=True, **({} if is_qwen else {"use_flash_attn": False}))
    network = network.eval().float()
    with torch.no_grad():
        # What it writes is a chain: after a line's end [SEG], after that the end.
        words, head = network.get_input_embeddings().weight, network.get_output_embeddings().weight
        words.normal_(0, 0.8)
        head.normal_(0, 0.02)
        words[tokenizer("\n").input_ids[-1], 0] += 25
        words[segment, 1] += 25
        head[segment, 0] += 5
        head[end, 1] += 5
        for name, weight in network.grounding_encoder.named_parameters():
            if weight.dim() > 1 and "image_encoder" not in name:
                weight.mul_(1.5)
    network.save_pretrained(weights)
    copy_code()
    if is_qwen:
        reading = {"processor": processor}
        network.torch_dtype = torch.float32
    else:
        reading = {"tokenizer": tokenizer}
        network.preparing_for_generation(tokenizer, torch_dtype=torch.float32)
    sam = network.grounding_encoder.sam2_model
    begin, here = sam.init_state, torch.device("cpu")
    sam.init_state = lambda images: {**begin(images), "device": here, "storage_device": here}
    question = f"<image>\n Please segment {EXPRESSION} in this image."
    with torch.no_grad():
        output = network.predict_forward(image=picture(folder), text=question, **reading)
    assert output["prediction"] == "[SEG]<|im_end|>", output["prediction"]
    return output["prediction_masks"][0][0]


def say(network, run, asked, answer):
    """Make a network without anything to say write `answer` after `asked`: `run(ids)` reads a text of it.

    Each word's row of the head is what the network holds in that place, without what it holds in the others.
    """
    head, seen = network.lm_head, []
    hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0, -1].detach()))
    for k in range(len(answer)):
        run(torch.cat([asked, torch.tensor([answer[:k]], dtype=asked.dtype)], dim=1))
    hook.remove()
    head.weight.zero_()
    # Rows that are at right angles to each other's places: the inverse of what was seen.
    inverse = torch.linalg.pinv(torch.stack(seen).double()).T
    for word, row in zip(answer, inverse, strict=True):
        head.weight[word] = 10 * row


def mllmseg(kind, repository, folder):
    sys.path.insert(0, os.path.join(WORKERS, "mllmseg"))
    sys.path.insert(0, repository)
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

    worker = importlib.import_module("worker")
    worker._stand_ins()
    from internvl.model.internvl_chat import InternVLChatConfig
    from mllmseg import constants as c
    from mllmseg.mllmseg_internvl import MLLMSeg

    place = os.path.join(folder, "tokens")
    os.makedirs(place)
    tokenizer = byte_tokens(place, [])
    special = [c.IMG_START_TOKEN, c.IMG_END_TOKEN, c.IMG_CONTEXT_TOKEN]
    special += ["<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>", c.SEG_TOKEN, c.REJ_TOKEN]
    tokenizer.add_tokens(special, special_tokens=True)
    torch.manual_seed(0)
    language = {
        "architectures": ["Qwen2ForCausalLM"], "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6, "torch_dtype": "float32", "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"), "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "architectures": ["InternVisionModel"], "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 64,
        "num_hidden_layers": 1, "image_size": 448, "patch_size": 14, "qkv_bias": True, "qk_normalization": False,
        "norm_type": "layer_norm", "drop_path_rate": 0.0, "use_flash_attn": False,
    }  # fmt: skip
    config = InternVLChatConfig(
        vision_config=vision, llm_config=language, select_layer=-1, force_image_size=448, downsample_ratio=0.5,
        template="internvl2_5", ps_version="v2", dynamic_image_size=False, use_thumbnail=False, use_llm_lora=0,
    )  # fmt: skip
    config.architectures = ["MLLMSeg"]
    network = MLLMSeg(config, tokenizer=tokenizer, data_type=torch.float32, init_decoder=True).eval()
    # The official evaluation, one expression in the conversation: only its threshold and resizing are written here.
    from mllmseg.dataset import build_transform, preprocess_internvl2_5

    token = tokenizer.convert_tokens_to_ids
    network.img_context_token_id, network.seg_token_idx = token(c.IMG_CONTEXT_TOKEN), token(c.SEG_TOKEN)
    network.rej_token_idx = token(c.REJ_TOKEN)
    words = EXPRESSION.strip().lower().strip().strip(".")
    talk = [
        {"from": "human", "value": f"<image>\n What are {words}in this image? Please output segmentation masks."},
        {"from": "gpt", "value": f"Sure,{words}:[SEG]."},
    ]
    made = preprocess_internvl2_5(
        "internvl2_5", [talk], tokenizer, [network.num_image_token], group_by_length=False, use_packed_ds=False,
        ds_name="test",
    )  # fmt: skip
    image = picture(folder)

    def officially():
        with torch.no_grad():
            return network(
                pixel_values=build_transform(is_train=False, input_size=448)(image)[None].to(torch.float16),
                input_ids=made["input_ids"].to(torch.int), attention_mask=made["attention_mask"],
                image_flags=torch.tensor([1]), gt_masks=None, reeval=kind == "mllmseg_gres", inference=True,
            )  # fmt: skip

    if kind == "mllmseg_gres":
        # Made to write [REJ] where [SEG] stands.
        head, seen = network.language_model.lm_head, []
        hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
        officially()
        hook.remove()
        place_of_seg = int((made["input_ids"][0] == network.seg_token_idx).nonzero())
        head.weight.data[network.rej_token_idx] = 100 * seen[-1][0, place_of_seg - 1]
    output = officially()
    with open(os.path.join(folder, "rejected.txt"), "w") as file:
        file.write(str(bool((output["output_ids"][0] == network.rej_token_idx).any())))
    weights = os.path.join(folder, "weights")
    network.save_pretrained(weights, safe_serialization=True)
    tokenizer.save_pretrained(weights)
    share = F.interpolate(output["pred_masks"][0][None].float(), (image.height, image.width), mode="bilinear")
    return (share[0, 0] >= 0.5).numpy()


if __name__ == "__main__":
    which, repository, folder = sys.argv[1:]
    picture(folder)
    with open(os.path.join(folder, "expression.txt"), "w") as file:
        file.write(EXPRESSION)
    makers = {"mllmseg": mllmseg, "mllmseg_gres": mllmseg, "lisa": lisa, "sa2va": sa2va, "sa2va_qwen": sa2va}
    found = makers.get(which, swin)(which, repository, folder)
    np.save(os.path.join(folder, "expected.npy"), found)
