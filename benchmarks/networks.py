"""Random networks, saved with their tokenizers and processors as users save theirs: small ones for tests, and some of
the published size for measurements on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BartTokenizerFast,
    BertTokenizerFast,
    CLIPImageProcessor,
    CLIPTokenizerFast,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GemmaTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Sam2Config,
    Sam2Model,
    Sam3Config,
    Sam3Model,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamHQProcessor,
    SamImageProcessor,
    SamModel,
    SamProcessor,
    SiglipImageProcessor,
)

PROMPTS = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 8}
DECODER = {
    "hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_depth": 2,
    "iou_head_hidden_dim": 16,
}  # fmt: skip
ENCODER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 16,
    "output_channels": 16, "mlp_dim": 32, "global_attn_indexes": [1], "window_size": 2, "num_pos_feats": 8,
}  # fmt: skip


def save_sam_vit_huge(folder: Path) -> Path:
    """SAM ViT-H: 641 million weights."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "mlp_dim": 5120,
        "global_attn_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    network = SamModel(SamConfig(vision_config=vision))
    smooth(network.mask_decoder)
    network.save_pretrained(folder)
    SamProcessor(SamImageProcessor()).save_pretrained(folder)
    return folder


def save_sam_vit_base(folder: Path) -> Path:
    """SAM ViT-B: 94 million weights, few enough to compute an image on the CPU too."""
    torch.manual_seed(0)
    network = SamModel(SamConfig())
    smooth(network.mask_decoder)
    network.save_pretrained(folder)
    SamProcessor(SamImageProcessor()).save_pretrained(folder)
    return folder


def smooth(module: torch.nn.Module) -> None:
    """Let transposed convolutions repeat a value. Random ones make checkerboards, whose masks have a hundred times the
    runs of a real mask, and encoding them would be measured instead of the network.
    """
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.ConvTranspose2d):
                part.weight.copy_(part.weight.mean(dim=(2, 3), keepdim=True).expand_as(part.weight))


def save_sam(kind: str, folder: Path) -> Path:
    """ "sam", "sam-hq", "sam2", or the tracker of "sam3"."""
    torch.manual_seed(0)
    size = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    if kind == "sam":
        config = SamConfig(vision_config=ENCODER, prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER)
        SamModel(config).save_pretrained(folder)
        SamProcessor(SamImageProcessor(**size)).save_pretrained(folder)
    elif kind == "sam-hq":
        decoder = {**DECODER, "vit_dim": 32}
        config = SamHQConfig(vision_config=ENCODER, prompt_encoder_config=PROMPTS, mask_decoder_config=decoder)
        SamHQModel(config).save_pretrained(folder)
        SamHQProcessor(SamImageProcessor(**size)).save_pretrained(folder)
    elif kind == "sam3":
        backbone = {
            "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 112, "patch_size": 14, "window_size": 4,
            "global_attn_indexes": [1], "pretrain_image_size": 56,
        }  # fmt: skip
        vision = {
            "model_type": "sam3_vision_model", "backbone_config": backbone, "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        }  # fmt: skip
        prompts = {**PROMPTS, "image_size": 112, "patch_size": 14, "hidden_size": 32}
        decoder = {**DECODER, "hidden_size": 32}
        config = Sam3TrackerConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
        Sam3TrackerModel(config).save_pretrained(folder)
    else:
        backbone = {
            "model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1, "image_size": [128, 128],
            "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
            "num_attention_heads_per_stage": [1, 1, 1, 1], "window_size_per_stage": [8, 4, 8, 4],
            "global_attention_blocks": [3], "window_positional_embedding_background_size": [7, 7],
        }  # fmt: skip
        vision = {
            "backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]], "fpn_hidden_size": 32,
        }  # fmt: skip
        prompts = {**PROMPTS, "image_size": 128, "hidden_size": 32}
        decoder = {**DECODER, "hidden_size": 32}
        config = Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
        Sam2Model(config).save_pretrained(folder)
    return folder


WORDS = (
    "the a an of on in to left right red blue man woman dog cat zebra bed cup person shirt standing front second from "
    "photo star ring bottle"
).split()


def clip_tokenizer(limit: int) -> CLIPTokenizerFast:
    """Letters, and a few words."""
    letters = [chr(c) for c in range(97, 123)] + list("0123456789")
    # OWLv2 takes a text that begins with token 0 for padding.
    entries = ["!", "<|startoftext|>", "<|endoftext|>", *(f"{w}</w>" for w in WORDS), *letters]
    entries += [f"{x}</w>" for x in letters]
    vocabulary = {word: k for k, word in enumerate(dict.fromkeys(entries))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return CLIPTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=limit,
    )


def bert_tokenizer(limit: int) -> BertTokenizerFast:
    """A few words, the rest letter by letter."""
    letters = [chr(c) for c in range(97, 123)]
    entries = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        ".",
        "?",
        "-",
        *WORDS,
        *letters,
        *(f"##{x}" for x in letters),
    ]
    vocabulary = {word: k for k, word in enumerate(dict.fromkeys(entries))}
    return BertTokenizerFast(vocab=vocabulary, model_max_length=limit)


def save_grounding_dino(folder: Path) -> Path:
    torch.manual_seed(1)
    tokenizer = bert_tokenizer(256)
    backbone = {
        "model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4,
        "image_size": 64, "out_features": ["stage2", "stage3", "stage4"],
    }  # fmt: skip
    text = {
        "model_type": "bert", "vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 256,
    }  # fmt: skip
    config = GroundingDinoConfig(
        backbone_config=backbone, text_config=text, d_model=32, num_queries=120, encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        num_feature_levels=4, disable_custom_kernels=True, max_text_len=256,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 192})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def save_grounding_dino_base(folder: Path) -> Path:
    """Grounding DINO base, with Swin-B."""
    torch.manual_seed(1)
    tokenizer = bert_tokenizer(256)
    backbone = {
        "model_type": "swin", "embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32],
        "window_size": 12, "image_size": 384, "out_features": ["stage2", "stage3", "stage4"],
    }  # fmt: skip
    text = {"model_type": "bert", "vocab_size": len(tokenizer)}
    config = GroundingDinoConfig(backbone_config=backbone, text_config=text, disable_custom_kernels=True)
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    GroundingDinoProcessor(GroundingDinoImageProcessor(), tokenizer).save_pretrained(folder)
    return folder


def save_owlv2(folder: Path) -> Path:
    torch.manual_seed(2)
    tokenizer = clip_tokenizer(16)
    config = Owlv2Config(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2,
            "pad_token_id": 2,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 16,
        },
        projection_dim=16,
    )  # fmt: skip
    network = Owlv2ForObjectDetection(config)
    with torch.no_grad():
        # As drawn, its heads saturate: every box at a corner, every score 0 or 1.
        for head in (network.box_head, network.class_head):
            for weight in head.parameters():
                weight.mul_(0.1)
    network.save_pretrained(folder)
    images = Owlv2ImageProcessor(size={"height": 64, "width": 64})
    Owlv2Processor(images, tokenizer).save_pretrained(folder)
    return folder


def save_sam3_full(folder: Path) -> Path:
    """SAM 3 of its published size."""
    torch.manual_seed(3)
    tokenizer = clip_tokenizer(32)
    Sam3Model(Sam3Config()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_sam3(folder: Path) -> Path:
    torch.manual_seed(3)
    tokenizer = clip_tokenizer(32)
    backbone = {
        "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 112, "patch_size": 14, "window_size": 4, "global_attn_indexes": [1],
        "pretrain_image_size": 56,
    }  # fmt: skip
    vision = {
        "model_type": "sam3_vision_model", "backbone_config": backbone, "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
    }  # fmt: skip
    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    config = Sam3Config(
        vision_config=vision,
        text_config={
            "model_type": "clip_text_model", "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32,
            "projection_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
        },
        geometry_encoder_config={**small, "num_layers": 1},
        detr_encoder_config={**small, "num_layers": 1},
        detr_decoder_config={**small, "num_layers": 2, "num_queries": 6},
        mask_decoder_config={"hidden_size": 32, "num_upsampling_stages": 3},
    )  # fmt: skip
    Sam3Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_florence2(folder: Path) -> Path:
    torch.manual_seed(5)
    letters = [chr(c) for c in range(33, 127)] + ["\u0120"]
    vocabulary = {t: k for k, t in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])}
    tokenizer = BartTokenizerFast(vocab=vocabulary, merges=[], extra_special_tokens={"image_token": "<image>"})
    tokenizer.add_tokens([f"<loc_{k}>" for k in range(1000)] + ["<poly>", "</poly>", "<sep>", "<od>", "</od>", "<and>"])
    config = Florence2Config(
        text_config={
            "model_type": "bart", "vocab_size": len(tokenizer), "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
            "max_position_embeddings": 256, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
            "decoder_start_token_id": 2, "forced_eos_token_id": 2, "forced_bos_token_id": 0,
        },
        vision_config={
            "depths": [1, 1, 1, 1], "embed_dim": [8, 16, 32, 64], "num_heads": [1, 1, 2, 2], "num_groups": [1, 1, 2, 2],
            "window_size": 2, "projection_dim": 32,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    Florence2ForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": 64, "width": 64}
    images = CLIPImageProcessor(size=size, do_center_crop=False, crop_size=size)
    # 64 px are 2 x 2 places after the last stage, and one for their mean.
    images.image_seq_length = 5
    Florence2Processor(images, tokenizer, post_processor_config={"polygons": {}}).save_pretrained(folder)
    return folder


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Letters, with a chat template in the form of Qwen-VL's."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    special.append("<|video_pad|>")
    letters = [*(chr(c) for c in range(33, 127)), "\u0120", "\u010a"]
    vocabulary = {t: k for k, t in enumerate(letters)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def save_qwen2_vl_2b(folder: Path) -> Path:
    """Qwen2-VL of the size of its 2B model, in bfloat16."""
    torch.manual_seed(6)
    tokenizer = qwen_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
            "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]},
            "eos_token_id": token("<|im_end|>"), "pad_token_id": token("<|endoftext|>"), "bos_token_id": None,
        },
        vision_config={"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": 1536, "patch_size": 14},
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
    )  # fmt: skip
    network = Qwen2VLForConditionalGeneration(config).to(torch.bfloat16)
    network.generation_config.eos_token_id = token("<|im_end|>")
    network.generation_config.pad_token_id = token("<|endoftext|>")
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=28 * 28 * 1280).save_pretrained(folder)
    return folder


def save_qwen_vl(folder: Path) -> Path:
    torch.manual_seed(6)
    tokenizer = qwen_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            "eos_token_id": token("<|im_end|>"), "pad_token_id": token("<|endoftext|>"), "bos_token_id": None,
        },
        vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "patch_size": 14,
            "out_hidden_size": 32, "fullatt_block_indexes": [0],
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
    )  # fmt: skip
    network = Qwen2_5_VLForConditionalGeneration(config)
    network.generation_config.eos_token_id = token("<|im_end|>")
    network.generation_config.pad_token_id = token("<|endoftext|>")
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessor(min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 16).save_pretrained(folder)
    return folder


def save_paligemma(folder: Path) -> Path:
    torch.manual_seed(7)
    letters = [*(chr(c) for c in range(33, 127)), "\u2581", "\n"]
    vocabulary = {t: k for k, t in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", *letters])}
    tokenizer = GemmaTokenizerFast(vocab=vocabulary, merges=[])
    tokenizer.add_tokens([f"<loc{k:04d}>" for k in range(1024)] + [f"<seg{k:03d}>" for k in range(128)])
    images = SiglipImageProcessor(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    processor = PaliGemmaProcessor(images, tokenizer)
    token = processor.tokenizer.convert_tokens_to_ids
    config = PaliGemmaConfig(
        text_config={
            "model_type": "gemma", "vocab_size": len(processor.tokenizer), "hidden_size": 32, "intermediate_size": 32,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
            "max_position_embeddings": 8192, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
        },
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "projection_dim": 32,
            "vision_use_head": False,
        },
        image_token_index=token("<image>"), image_token_id=token("<image>"), projection_dim=32, hidden_size=32,
    )  # fmt: skip
    PaliGemmaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_token_decoder(path: Path) -> Path:
    """Random weights of PaliGemma's mask decoder, under the names of the published file."""
    generator = np.random.default_rng(0)
    shapes = {"decoder.0": (16, 24, 1, 1), "decoder.12": (1, 2, 1, 1)}
    for block in (2, 3):
        shapes |= {f"decoder.{block}.net.{k}": (16, 16, 3 if k < 4 else 1, 3 if k < 4 else 1) for k in (0, 2, 4)}
    for k, (wide, narrow) in zip((4, 6, 8, 10), ((16, 16), (16, 8), (8, 4), (4, 2)), strict=True):
        shapes[f"decoder.{k}"] = (wide, narrow, 4, 4)
    arrays = {"_vq_vae._embedding": generator.normal(size=(128, 24))}
    for name, shape in shapes.items():
        out = shape[1] if name in ("decoder.4", "decoder.6", "decoder.8", "decoder.10") else shape[0]
        arrays[f"{name}.weight"] = generator.normal(size=shape) * (3 / np.prod(shape[1:])) ** 0.5
        arrays[f"{name}.bias"] = generator.normal(size=out) * 0.1
    weights: dict[str, Any] = {name: array.astype(np.float32) for name, array in arrays.items()}
    np.savez(path, **weights, encoder=np.zeros(1))
    return path
