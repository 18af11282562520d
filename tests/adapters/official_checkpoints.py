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
        Qwen2Tokenizer,
    )
    from transformers.models.qwen2.tokenization_qwen2 import bytes_to_unicode

    worker = importlib.import_module("worker")
    worker._stand_ins()
    from internvl.model.internvl_chat import InternVLChatConfig
    from mllmseg import constants as c
    from mllmseg.mllmseg_internvl import MLLMSeg

    place = os.path.join(folder, "tokens")
    os.makedirs(place)
    with open(os.path.join(place, "vocab.json"), "w") as file:
        json.dump({x: k for k, x in enumerate(bytes_to_unicode().values())}, file)
    with open(os.path.join(place, "merges.txt"), "w") as file:
        file.write("#version: 0.2\n")
    tokenizer = Qwen2Tokenizer(
        os.path.join(place, "vocab.json"), os.path.join(place, "merges.txt"), model_max_length=8192
    )
    special = ["<|im_start|>", "<|im_end|>", c.IMG_START_TOKEN, c.IMG_END_TOKEN, c.IMG_CONTEXT_TOKEN]
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
    found = mllmseg(which, repository, folder) if which.startswith("mllmseg") else swin(which, repository, folder)
    np.save(os.path.join(folder, "expected.npy"), found)
