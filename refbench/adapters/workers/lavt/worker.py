"""LAVT, from its official repository (yz93/LAVT-RIS, commit 1da0af9, GPL-3.0), which you check out yourself.

Options: repo=FOLDER, weights=FILE (a published lavt_*.pth or lavt_one_*.pth), bert=FOLDER (config.json and vocab.txt
of bert-base-uncased), kind=lavt|lavt_one. As test.py does it: 480 x 480, 20 tokens, argmax of two channels; then
nearest to the picture's size, as demo_inference.py does.
"""

import torch
from research_code import (
    Namespace,
    add_repository,
    architecture,
    bert_tokens,
    for_swin,
    image_tensor,
    load_checkpoint,
    load_strictly,
    need,
    not_here,
    stand_in,
)
from torch.nn import functional as F
from worker_sdk import Answer, git_revision, serve, sha256_of

SIDE = 480
TOKENS = 20
BASE = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12}


class Lavt(object):
    name = "lavt"
    # The official data set feeds the words as they were written, punctuation and all.
    text = "raw"
    max_batch = 8

    def __init__(self, config, device):
        repository = add_repository(config, "https://github.com/yz93/LAVT-RIS", "lib/segmentation.py")
        self.kind = config.get("kind", "lavt")
        if self.kind not in ("lavt", "lavt_one"):
            raise ValueError("kind is lavt or lavt_one, not %r" % self.kind)
        self.name = self.kind.replace("_", "-")
        weights = need(config, "weights", "a checkpoint")
        bert = need(config, "bert", "the config.json and vocab.txt of bert-base-uncased")
        self.device = torch.device(device)
        for_swin()
        import lib  # noqa: F401 (a namespace package: it must be there before its stand-in)

        # The only file that needs mmcv; it loads a backbone for training.
        stand_in("lib.mmcv_custom", load_checkpoint=not_here)
        from bert.configuration_bert import BertConfig
        from bert.modeling_bert import BertModel
        from bert.tokenization_bert import BertTokenizer
        from lib import segmentation

        # The checkpoint holds the language model too: only its shape is read from the folder.
        BertModel.from_pretrained = classmethod(lambda cls, path, **_: cls(BertConfig.from_pretrained(path)))
        self.tokenizer = BertTokenizer.from_pretrained(bert)
        numbers = architecture(config, BASE)
        backbone = segmentation.MultiModalSwinTransformer(
            ape=False, drop_path_rate=0.3, patch_norm=True, out_indices=(0, 1, 2, 3), use_checkpoint=False,
            num_heads_fusion=[1, 1, 1, 1], fusion_drop=0.0, **numbers
        )  # fmt: skip
        decoder = segmentation.SimpleDecoding(8 * numbers["embed_dim"])
        arguments = Namespace(ck_bert=bert)
        checkpoint = load_checkpoint(weights)
        self.language = None
        if self.kind == "lavt":
            self.network = segmentation.LAVT(backbone, decoder)
            self.language = BertModel.from_pretrained(bert)
            self.language.pooler = None
            # The original from_pretrained ends training mode; without `eval`, dropout would stay on.
            load_strictly(self.language, checkpoint["bert_model"], "BERT").eval().to(self.device)
        else:
            self.network = segmentation.LAVTOne(backbone, decoder, arguments)
        load_strictly(self.network, checkpoint["model"], self.kind).eval().to(self.device)
        self.revision = git_revision(repository)
        self.weights_sha256 = sha256_of(weights)

    @torch.no_grad()
    def segment(self, images, expressions):
        pixels = torch.stack([image_tensor(image, SIDE) for image in images]).to(self.device)
        ids, attention, cut = bert_tokens(self.tokenizer, expressions, TOKENS)
        ids, attention = ids.to(self.device), attention.to(self.device)
        if self.language is None:
            output = self.network(pixels, ids, l_mask=attention)
        else:
            words = self.language(ids, attention_mask=attention)[0].permute(0, 2, 1)
            output = self.network(pixels, words, l_mask=attention.unsqueeze(-1))
        masks = output.argmax(1)
        answers = []
        for mask, image, shortened in zip(masks, images, cut):
            own = F.interpolate(mask[None, None].float(), (image.height, image.width))[0, 0] > 0.5
            answers.append(Answer(own, note="text cut to %d tokens" % TOKENS if shortened else ""))
        return answers


if __name__ == "__main__":
    serve(Lavt)
