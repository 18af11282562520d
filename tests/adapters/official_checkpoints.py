"""Makes a small random checkpoint by an official repository's own code, and what that code makes of an image.

    python official_checkpoints.py lavt|lavt_one|magnet|mllmseg|mllmseg_gres REPOSITORY FOLDER

writes into FOLDER the checkpoint in the layout of the released ones, `image.png`, `expression.txt` and
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
    "xsam": {"layers": [1, 2, 3, 4], "connector": 32, "channels": [16, 32, 64]},
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
    """In both modes what the repository's own chat and validation make of the image; here only its files are read."""
    sys.path.insert(0, os.path.join(WORKERS, "lisa"))
    sys.path.insert(0, repository)
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
    words = "What is the man in this image? Please output segmentation mask. A chat between two"
    tokenizer = LlamaTokenizer(sentence_pieces(folder, words))
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

    def prompt(question, answer):
        talk = conversation.conv_templates["llava_v1"].copy()
        talk.messages = []
        asked = f"<im_start><image><im_end>\n {question} Please output segmentation mask."
        talk.append_message(talk.roles[0], asked)
        talk.append_message(talk.roles[1], answer)
        return tokenizer_image_token(talk.get_prompt(), tokenizer, return_tensors="pt")

    def forced(question):
        ids = prompt(question, "[SEG].")[None]
        return network.model_forward(
            images=sam_pixels, images_clip=clip_pixels, input_ids=ids, labels=None, attention_masks=ids.ne(0),
            offset=torch.tensor([0, 1]), masks_list=None, label_list=[torch.empty(pixels.shape[:2])],
            resize_list=[small.shape[:2]], inference=True,
        )["pred_masks"][0][0]  # fmt: skip

    question = f"What is {EXPRESSION.lower()} in this image?"
    asked = prompt(question, "")[None]
    with torch.no_grad():
        say(network, lambda ids: network.model_forward(
            images=sam_pixels, images_clip=clip_pixels, input_ids=ids, labels=None, attention_masks=ids.ne(0),
            offset=torch.tensor([0, 1]), masks_list=None, label_list=[torch.empty(9, 9)], resize_list=[small.shape[:2]],
            inference=True,
        ), asked, [segment, tokenizer.eos_token_id])  # fmt: skip
        found = forced(question) > 0
        # As ReasonSeg's sentences are asked.
        np.save(os.path.join(folder, "sentence.npy"), (forced(EXPRESSION) > 0).numpy())
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
        write_chain(network, tokenizer("\n").input_ids[-1], [segment, end])
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


def fast_byte_tokens(special, words):
    """As `byte_tokens`, of the kind that processors take; `words` are not special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import Qwen2TokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({x: k for k, x in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=32768
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words], special_tokens=False)
    return tokenizer


def write_chain(network, first, answer):
    """Make a network write `answer`, numbers of tokens: each is led to by the one before, the first by `first`."""
    words, head = network.get_input_embeddings().weight, network.get_output_embeddings().weight
    words.normal_(0, 0.5)
    head.normal_(0, 0.02)
    for k, (before, after) in enumerate(zip([first, *answer], answer, strict=False)):
        words[before, k] += 25
        head[after, k] += 5


def samtok(kind, repository, folder):
    """A copy of the module with a small SAM 2 takes the repository's place; the way from codes to a mask is its own."""
    import shutil
    import types

    from transformers import (
        Qwen2VLImageProcessorFast,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    weights, place = os.path.join(folder, "weights"), os.path.join(folder, "repository")
    inside = os.path.join("projects", "samtok", "models")
    shutil.copytree(os.path.join(repository, inside), os.path.join(place, inside))
    module = os.path.join(place, inside, "sam2.py")
    with open(module, encoding="utf-8") as file:
        text = file.read()
    for old, new in SMALLER_SAM2.items():
        assert old in text
        text = text.replace(old, new)
    with open(module, "w", encoding="utf-8") as file:
        file.write(text)
    masks = ["<|mt_start|>", *(f"<|mt_{k:04d}|>" for k in range(512)), "<|mt_end|>"]
    pictures = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = fast_byte_tokens(["<|im_start|>", *pictures], masks)
    tokenizer.chat_template = CHAT
    number = tokenizer.convert_tokens_to_ids
    end = number("<|im_end|>")
    language = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32768, "head_dim": 16,
        "initializer_range": 0.2, "eos_token_id": end, "pad_token_id": number("<|endoftext|>"),
        "tie_word_embeddings": False,
        "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 64, "patch_size": 16,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    config = Qwen3VLConfig(
        text_config=language, vision_config=vision, tie_word_embeddings=False,
        **dict(zip(names, map(number, pictures), strict=True)),
    )  # fmt: skip
    torch.manual_seed(0)
    network = Qwen3VLForConditionalGeneration(config).eval()
    answer = ["<|mt_start|>", "<|mt_0123|>", "<|mt_0345|>", "<|mt_end|>", "<|im_end|>"]
    with torch.no_grad():
        write_chain(network, tokenizer("\n").input_ids[-1], [number(word) for word in answer])
    network.generation_config.update(eos_token_id=end, pad_token_id=number("<|endoftext|>"))
    network.save_pretrained(weights)
    looks = Qwen2VLImageProcessorFast(patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    Qwen3VLProcessor(looks, tokenizer, Qwen3VLVideoProcessor(), chat_template=CHAT).save_pretrained(weights)

    for name in ("projects", "projects.samtok", "projects.samtok.models"):
        package = types.ModuleType(name)
        package.__path__ = [os.path.join(place, *name.split("."))]
        sys.modules[name] = package
    official = importlib.import_module("projects.samtok.models.sam2")
    official.load_checkpoint_with_prefix = lambda *_, **__: {}
    settings = official.VQ_SAM2Config(
        sam2_config=official.SAM2Config(ckpt_path="none"), codebook_size=256, codebook_depth=2, shared_codebook=False,
        latent_dim=256,
    )  # fmt: skip
    decoder = official.VQ_SAM2(settings).eval()
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if weight.dim() > 1 and "image_encoder" not in name and "quantizer" not in name:
                weight.mul_(1.5)
        for codebook in decoder.quantizer.codebooks:
            codebook.weight.mul_(3)
        torch.save(decoder.state_dict(), os.path.join(weights, "mask_tokenizer_256x2.pth"))
        image = picture(folder)
        pixels = torch.from_numpy(np.array(image.resize((1024, 1024)))).permute(2, 0, 1)[None].float()
        logits = decoder.forward_with_codes(pixels, torch.LongTensor([[123, 345 - 256]]))
    return (F.interpolate(logits, (image.height, image.width), mode="bilinear")[0, 0] > 0.5).numpy()


def published_xsam(folder, inits):
    """The network of the published configuration, read by the repository's own means; only small numbers differ."""
    from research_code import installed, not_here, stand_in
    from transformers import (  # noqa: F401
        AutoModelForCausalLM,
        AutoTokenizer,
        LlamaTokenizerFast,
        Phi3ForCausalLM,
        SamImageProcessor,
        SamModel,
        SiglipImageProcessor,
        SiglipVisionModel,
    )

    # What is imported on the way and not used.
    unused = {
        "datasets": ("Dataset", "DatasetDict", "load_from_disk", "concatenate_datasets"),
        "torchvision.ops.boxes": ("batched_nms",), "torchvision.transforms.v2.functional": (),
        "torchvision.transforms": ("InterpolationMode",), "panopticapi.utils": ("id2rgb", "rgb2id", "get_traceback"),
        "sklearn.metrics.pairwise": ("cosine_similarity",), "textwrap3": (),
        "pycocoevalcap.cider.cider": ("Cider",), "pycocoevalcap.eval": ("COCOEvalCap",),
        "pycocoevalcap.meteor.meteor": ("Meteor",), "pycocoevalcap.tokenizer.ptbtokenizer": ("PTBTokenizer",),
        "peft": ("get_peft_model", "prepare_model_for_kbit_training", "PeftType"),
    }  # fmt: skip
    if installed("peft"):
        import peft  # noqa: F401
    for name, what in unused.items():
        stand_in(name, **dict.fromkeys(what, not_here))
    # torch calls it at the end.
    stand_in("tabulate", tabulate=lambda *_, **__: "")
    sys.path.insert(0, folder)
    os.environ.update(INIT_DIR=f"{inits}/", DATA_DIR="none/", WORK_DIR="none/", CODE_DIR=f"{folder}/")
    import mmengine.config.config
    import mmengine.config.utils

    for module in (mmengine.config.config, mmengine.config.utils):
        # It takes modules that Python 3.11 has built in for packages to be imported later.
        module._is_builtin_module = lambda name: name.partition(".")[0] in sys.stdlib_module_names
    torch.cpu.is_bf16_supported = lambda: True
    from mmengine.config import Config
    from xsam.registry import BUILDER

    name = "xsam_phi3_mini_4k_instruct_siglip2_so400m_p14_384_sam_vit_large_m2f_e1_gpu16.py"
    config = Config.fromfile(os.path.join(folder, "xsam", "configs", "xsam", "s3_train", name))
    numbers, exact = NUMBERS["xsam"], torch.float32
    config.merge_from_dict(
        {
            "model.s1_pretrained_pth": None, "model.s2_pretrained_pth": None,
            "model.extra_select_layers": numbers["layers"], "model.connector_hidden_dim": numbers["connector"],
            "model.segmentor.decoder.config.feature_channels": numbers["channels"],
            "model.llm.attn_implementation": "eager", "model.llm.torch_dtype": exact,
            "model.vision_encoder.torch_dtype": exact, "model.segmentor.torch_dtype": exact,
            "model.segmentor.encoder.torch_dtype": exact, "model.segmentor.decoder.torch_dtype": exact,
        }
    )  # fmt: skip
    torch.manual_seed(5)
    return BUILDER.build(config.model).eval()


def xsam(kind, repository, folder):
    """The configurations of four networks, a checkpoint with the names of the released one, and both modes' masks."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import (
        LlamaTokenizerFast,
        Mask2FormerConfig,
        Phi3Config,
        Phi3ForCausalLM,
        SamConfig,
        SamImageProcessor,
        SamModel,
        SiglipConfig,
        SiglipImageProcessor,
        SiglipModel,
    )

    names = {
        "phi": "Phi-3-mini-4k-instruct", "siglip": "siglip2-so400m-patch14-384", "sam": "sam-vit-large",
        "mask2former": "mask2former-swin-large-coco-panoptic",
    }  # fmt: skip
    inits = {key: os.path.join(folder, "inits", name) for key, name in names.items()}
    letters = ["\u2581", *map(chr, range(33, 127))]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{k:02X}>" for k in range(256)), *letters]
    made = Tokenizer(
        models.BPE({w: k for k, w in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    roles = ("<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    made.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    made.add_special_tokens([AddedToken(x, special=True, normalized=False, rstrip=True) for x in roles])
    tokenizer = LlamaTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="<|endoftext|>", pad_token="<|endoftext|>",
        add_bos_token=False, add_eos_token=False, legacy=False, model_max_length=4096,
    )  # fmt: skip
    tokenizer.save_pretrained(inits["phi"])
    small = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}
    # The published configuration begins with the weights of these four, and then reads the checkpoint.
    phi = Phi3Config(
        **small, num_hidden_layers=2, vocab_size=512, num_key_value_heads=4, max_position_embeddings=4096,
        original_max_position_embeddings=4096, pad_token_id=3, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(4)
    Phi3ForCausalLM(phi).save_pretrained(inits["phi"])
    eyes = {**small, "num_hidden_layers": 2, "image_size": 56, "patch_size": 14}
    words = {**small, "num_hidden_layers": 1, "vocab_size": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    SiglipModel(SiglipConfig(text_config=words, vision_config=eyes)).save_pretrained(inits["siglip"])
    SiglipImageProcessor(
        size={"height": 56, "width": 56}, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(inits["siglip"])
    sam = SamConfig(
        vision_config={
            "hidden_size": 32, "output_channels": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
            "image_size": 256, "patch_size": 16, "mlp_dim": 64, "window_size": 14, "global_attn_indexes": [1, 3],
            "num_pos_feats": 16,
        },
        mask_decoder_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 32},
        prompt_encoder_config={"hidden_size": 32, "image_size": 256, "patch_size": 16, "mask_input_channels": 4},
    )  # fmt: skip
    SamModel(sam).save_pretrained(inits["sam"])
    padded = {"height": 256, "width": 256}
    SamImageProcessor(
        size={"longest_edge": 256}, pad_size=padded, mask_size={"longest_edge": 256}, mask_pad_size=padded
    ).save_pretrained(inits["sam"])
    Mask2FormerConfig(
        feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32, encoder_layers=1,
        decoder_layers=3, num_attention_heads=4, dim_feedforward=32, num_queries=10,
    ).save_pretrained(inits["mask2former"])  # fmt: skip

    network = published_xsam(os.path.join(repository, "xsam"), os.path.join(folder, "inits"))
    from xsam.dataset.process_fns.postprocess_fns.img_refseg_process_fn import img_refseg_postprocess_fn
    from xsam.dataset.processors.image_processing_sam import SamImageProcessor as OfficialSamProcessor
    from xsam.structures.data_sample import DataSample

    network.llm.config.use_cache = False
    known = network.tokenizer

    image = picture(folder)
    side = max(image.size)
    square = Image.new("RGB", (side, side), (127, 127, 127))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    seen = SiglipImageProcessor.from_pretrained(inits["siglip"])(square, return_tensors="pt")["pixel_values"]
    sam = OfficialSamProcessor.from_pretrained(inits["sam"], ignore_index=0)(image, return_tensors="pt")
    sample = DataSample()
    sizes = {"image_sizes": [(image.height, image.width)], "scaled_sizes": [sam["scaled_sizes"][0].tolist()]}
    sample.set_metainfo({"task_names": ["img_refseg"], **sizes})
    question = f"\nPlease identify and segment the <p>{EXPRESSION.lower()}</p> in this image.<|end|>\n<|assistant|>\n"
    number = known.convert_tokens_to_ids
    encoded = [known.encode(part, add_special_tokens=False) for part in ("<|user|>\n", question)]
    asked = torch.tensor([[known.bos_token_id, *encoded[0], -200, *encoded[1]]])

    def run(ids):
        inside = (ids == number("<p>")).cumsum(1) - (ids == number("</p>")).cumsum(1) + (ids == number("</p>"))
        data = {
            "input_ids": ids, "pixel_values": seen, "extra_pixel_values": sam["pixel_values"],
            "cond_ids": inside.clamp(0, 1) - 1, "seg_ids": (ids == number("<SEG>")).long() - 1,
        }  # fmt: skip
        return network(data, sample, mode="tensor", do_postprocess=False)[1]

    def mask(answer):
        ids = known.encode(answer, add_special_tokens=False)
        output = run(torch.cat([asked, torch.tensor([ids])], dim=1))
        return (img_refseg_postprocess_fn(output, use_bg_embeds=True, **sizes)[0]["segmentation"] == 1).numpy()

    with torch.no_grad():
        decoder, network.segmentor.decoder = network.segmentor.decoder, None
        say(network.llm, run, asked, [number("<SEG>"), number("<|end|>")])
        network.segmentor.decoder = decoder
        np.save(os.path.join(folder, "written.npy"), mask("<SEG><|end|>"))
        found = mask("<SEG>.<|end|>\n")
    old = {"vision_encoder.": "visual_encoder.", "segmentor.class_predictor.logit_scale": "segmentor.logit_scale"}
    state = dict(network.full_state_dict())
    for new, name in old.items():
        state = {name + k[len(new) :] if k.startswith(new) else k: v for k, v in state.items()}
    torch.save(state, os.path.join(folder, "weights.pth"))
    return found


SMALLER_EVF = {
    "model/unilm/beit3/modeling_utils.py": {
        "encoder_embed_dim=1024": "encoder_embed_dim=64", "encoder_attention_heads=16": "encoder_attention_heads=4",
        "int(1024 * mlp_ratio)": "128", "encoder_layers=24": "encoder_layers=2", "vocab_size=64010": "vocab_size=400",
    },
    "model/segment_anything/build_sam.py": {
        "encoder_embed_dim=1280": "encoder_embed_dim=32", "encoder_depth=32": "encoder_depth=2",
        "encoder_num_heads=16": "encoder_num_heads=2", "indexes=[7, 15, 23, 31]": "indexes=[1]",
    },
    "model/segment_anything_2/sam2_configs/sam2_hiera_l.yaml": {
        "embed_dim: 144": "embed_dim: 16", "stages: [2, 6, 36, 4]": "stages: [1, 1, 2, 1]",
        "global_att_blocks: [23, 33, 43]": "global_att_blocks: [3]", "num_layers: 4": "num_layers: 1",
        "backbone_channel_list: [1152, 576, 288, 144]": "backbone_channel_list: [128, 64, 32, 16]",
    },
    "model/EfficientSAM/efficient_sam/build_efficient_sam.py": {
        "embed_dim=384": "embed_dim=32", "num_heads=6": "num_heads=2",
    },
}  # fmt: skip


def evfsam(kind, repository, folder):
    """A copy with smaller numbers takes the repository's place; what the official steps make of the image is kept."""
    import shutil

    which = {"evfsam_first": "sam2"}.get(kind, kind.partition("_")[2])
    place, weights = os.path.join(folder, "repository"), os.path.join(folder, "weights")
    shutil.copytree(os.path.join(repository, "model"), os.path.join(place, "model"))
    for name, changes in SMALLER_EVF.items():
        with open(os.path.join(place, name)) as file:
            text = file.read()
        for old, new in changes.items():
            assert old in text, (name, old)
            text = text.replace(old, new)
        with open(os.path.join(place, name), "w") as file:
            file.write(text)
    sys.path.insert(0, place)
    from research_code import for_torchvision, not_here, stand_in
    from transformers import (  # noqa: F401
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        BitsAndBytesConfig,
        PreTrainedModel,
        XLMRobertaTokenizer,
    )

    for_torchvision()
    stand_in("timm.models.layers", trunc_normal_=torch.nn.init.trunc_normal_, drop_path=not_here)
    stand_in("fairscale.nn", checkpoint_wrapper=not_here, wrap=not_here)
    from model.configuration_evf import EvfConfig
    from model.segment_anything.utils.transforms import ResizeLongestSide

    module, name, scale = {
        "ori": ("model.evf_sam", "EvfSamModel", "huge"),
        "sam2": ("model.evf_sam2", "EvfSam2Model", "large"),
        "effi": ("model.evf_effisam", "EvfEffiSamModel", "small"),
    }[which]
    torch.manual_seed(3)
    config = EvfConfig(hidden_size=64, out_dim=256, mm_extractor_scale="large", sam_scale=scale)
    network = getattr(importlib.import_module(module), name)(config).eval()
    with torch.no_grad():
        for weight in network.parameters():
            # Some begin as zeros, and the text would hardly matter.
            weight.add_(torch.randn_like(weight) * 0.5 / max(1, weight[0].numel() if weight.dim() > 1 else 4) ** 0.5)
    network.save_pretrained(weights)
    words = "the red ball on the left of a man, who is in front of it and of all the other balls"
    own = {"vocab_size": 90, "byte_fallback": False, "bos_id": 1, "eos_id": 2, "unk_id": 0, "pad_id": -1}
    tokenizer = XLMRobertaTokenizer(sentence_pieces(folder, words, **own))
    tokenizer.save_pretrained(weights)

    image = picture(folder)
    pixels = np.array(image)
    mean, spread = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
    longest = ResizeLongestSide(1024).apply_image(pixels)
    size = longest.shape[:2]
    if kind == "evfsam_ori":
        sam = np.zeros((1024, 1024, 3), np.float32)
        sam[: size[0], : size[1]] = (longest - mean) / spread
    elif kind == "evfsam_first":
        sam = (longest - mean) / spread
    else:
        sam = (np.array(image.resize((1024, 1024), Image.BILINEAR)) - mean) / spread
    sam = torch.from_numpy(sam).permute(2, 0, 1)[None].contiguous()
    more = {"multimask_output": kind != "evfsam_first"} if which == "sam2" else {}
    if kind == "evfsam_first":
        sam = F.interpolate(sam, (1024, 1024), mode="bilinear", align_corners=False)
    seen = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    seen = F.interpolate(seen, (224, 224), mode="bicubic", align_corners=False) * 2 - 1
    ids = torch.tensor([tokenizer(EXPRESSION.lower())["input_ids"]])
    with torch.no_grad():
        logits = network.inference(sam, seen, ids, [size], [pixels.shape[:2]], **more)
    return (logits[0] > 0).numpy()


def sentence_pieces(folder, text, **more):
    """A model of sentencepiece that knows some words, and single bytes."""
    import sentencepiece

    written, model = os.path.join(folder, "text.txt"), os.path.join(folder, "words")
    with open(written, "w") as file:
        file.write(f"{text}\n" * 9)
    sentencepiece.SentencePieceTrainer.train(
        input=written, model_prefix=model, minloglevel=2, hard_vocab_limit=False,
        **{"vocab_size": 300, "byte_fallback": True, **more},
    )  # fmt: skip
    return model + ".model"


def say(network, run, asked, answer):
    """Make a network without anything to say write `answer` after `asked`: `run(ids)` reads a text of it.

    Each word's row of the head is what the network holds in that place, without what it holds in the others.
    """
    head, seen = network.get_output_embeddings(), []
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
    is_internlm = kind == "mllmseg_internlm"
    if is_internlm:
        # As the 2B and 8B networks: a tokenizer that begins with a token of its own.
        from internvl.model.internlm2.tokenization_internlm2 import InternLM2Tokenizer

        tokenizer = InternLM2Tokenizer(sentence_pieces(place, "What are in this image? output segmentation masks."))
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    else:
        tokenizer = byte_tokens(place, [])
    special = [c.IMG_START_TOKEN, c.IMG_END_TOKEN, c.IMG_CONTEXT_TOKEN]
    special += ["<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>", c.SEG_TOKEN, c.REJ_TOKEN]
    tokenizer.add_tokens(special, special_tokens=True)
    torch.manual_seed(0)
    language = {
        "architectures": ["InternLM2ForCausalLM" if is_internlm else "Qwen2ForCausalLM"],
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6, "torch_dtype": "float32",
        "bos_token_id": tokenizer.bos_token_id or tokenizer.pad_token_id,
        **({"bias": False, "rope_theta": 10000.0} if is_internlm else {}),
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

    def officially(ids=made["input_ids"]):
        with torch.no_grad():
            return network(
                pixel_values=build_transform(is_train=False, input_size=448)(image)[None].to(torch.float16),
                input_ids=ids.to(torch.int), attention_mask=torch.ones_like(ids), image_flags=torch.tensor([1]),
                gt_masks=None, reeval=kind == "mllmseg_gres", inference=True,
            )  # fmt: skip

    def drawn(output):
        share = F.interpolate(output["pred_masks"][0][None].float(), (image.height, image.width), mode="bilinear")
        return (share[0, 0] >= 0.5).numpy()

    if kind == "mllmseg_gres":
        # Made to write [REJ] where [SEG] stands.
        head, seen = network.language_model.lm_head, []
        hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
        officially()
        hook.remove()
        place_of_seg = int((made["input_ids"][0] == network.seg_token_idx).nonzero())
        head.weight.data[network.rej_token_idx] = 100 * seen[-1][0, place_of_seg - 1]
    else:
        # What the official code learns to write begins behind what it leaves out of its loss.
        asked = made["input_ids"][:, : int((made["labels"][0] != -100).nonzero()[0])]
        with torch.no_grad():
            say(network.language_model, officially, asked, [network.seg_token_idx, token("<|im_end|>")])
        answer = torch.tensor([[network.seg_token_idx, token("<|im_end|>")]])
        np.save(os.path.join(folder, "written.npy"), drawn(officially(torch.cat([asked, answer], dim=1))))
    output = officially()
    with open(os.path.join(folder, "rejected.txt"), "w") as file:
        file.write(str(bool((output["output_ids"][0] == network.rej_token_idx).any())))
    weights = os.path.join(folder, "weights")
    network.save_pretrained(weights, safe_serialization=True)
    tokenizer.save_pretrained(weights)
    return drawn(output)


if __name__ == "__main__":
    which, repository, folder = sys.argv[1:]
    picture(folder)
    with open(os.path.join(folder, "expression.txt"), "w") as file:
        file.write(EXPRESSION)
    makers = {
        "mllmseg": mllmseg,
        "mllmseg_gres": mllmseg,
        "mllmseg_internlm": mllmseg,
        "lisa": lisa,
        "sa2va": sa2va,
        "sa2va_qwen": sa2va,
        "samtok": samtok,
        "xsam": xsam,
        **dict.fromkeys(("evfsam_ori", "evfsam_sam2", "evfsam_first", "evfsam_effi"), evfsam),
    }
    found = makers.get(which, swin)(which, repository, folder)
    np.save(os.path.join(folder, "expected.npy"), found)
