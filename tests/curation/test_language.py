"""The rules of words: what they flag, what they leave, and that somebody else's list is read or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from curation.miniature_split import image, sample, square
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from refbench.curation.checks.toxicity import Toxic
from refbench.curation.language import flag, read_rules
from refbench.datasets.builders.base import Sources, build_dataset
from refbench.errors import DatasetError
from refbench.plugins.loading import load
from refbench.storage.progress import silent
from refbench.storage.samples import load_samples


@pytest.mark.parametrize(
    "text",
    [
        "black dog", "fat lady right", "old man", "white guy", "butt of the zebra", "elephant butt", "bald head",
        "chocolate donut with nuts", "left chick", "cow cut off", "cock-eyed umpire", "assorted fruit", "glass",
        "hot dog", "ugly green suitcase", "naked arm", "the class photo", "blackberry", "shirt", "bass guitar",
        "left kid sucking finger", "balls on the table", "bum bag on the left", "t-shirt", "chubby middle person",
        "a baby giraffe sucking milk",
    ],
)  # fmt: skip
def test_words_that_refer_are_left_alone(text: str) -> None:
    assert flag(text) == []


@pytest.mark.parametrize(
    ("text", "rule", "action"),
    [
        ("wanker on the left", "insult", "drop"), ("WANKERS!", "insult", "drop"), ("ugly kid", "mocking", "drop"),
        ("kid who is ugly", "mocking", "drop"), ("her nice ass", "buttocks", "drop"),
        ("bottom boobs", "sexual", "drop"), ("b00bs", "sexual", "drop"), ("w@nker", "insult", "drop"),
        ("sluuuuut", "insult", "drop"),
        ("wtf hand", "profanity", "drop"),
        ("zebra ass right", "coarse-behind", "review"), ("oriental boy", "outdated-ethnic", "review"),
        ("blue shit man", "profanity-or-typo", "review"), ("hot girl", "sexual-context", "review"),
        ("Müll douchebag", "insult", "drop"), ("slut carrying bags", "insult", "drop"),
        ("f*ck this", "profanity", "drop"),
        ("ret-ard", "slur", "drop"), ("f.a.g", "slur", "drop"), ("f\u0430ggot", "slur", "drop"),
    ],
)  # fmt: skip
def test_words_that_offend_are_flagged(text: str, rule: str, action: str) -> None:
    verdicts = [(v.rule, v.action) for v in flag(text)]
    assert (rule, action) in verdicts
    assert all(v.word for v in flag(text))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rules = 1", "holds no"), ("[[rules]]\nname = 'x'", "needs a text"), ("not toml", "is not a valid word list"),
        ("[[rules]]\nname='x'\naction='burn'\nsays='y'\nwords='z'", "the action must be"),
        ("[[rules]]\nname='x'\naction='drop'\nsays='y'\nwords='z'\nwith_words_of='q'", r"the group \["),
    ],
)  # fmt: skip
def test_a_list_that_is_none(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "words.toml"
    path.write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_rules(path)


def test_a_classifier_of_the_users(tmp_path: Path) -> None:
    """A small random one, saved and loaded as users do; what it says is what transformers says."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "left", "dog", "kid", "ugly"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        id2label={0: "fine", 1: "toxic"}, label2id={"fine": 0, "toxic": 1}, initializer_range=1.0,
    )  # fmt: skip
    network = BertForSequenceClassification(config).eval()
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["left dog", "ugly kid", "kid", "dog dog dog left"]
    items = [image([sample("a", k, text, square(5, 5, 20)) for k, text in enumerate(texts)])]
    expected = []
    for text in texts:
        with torch.inference_mode():
            logits = network(**tokenizer(text, return_tensors="pt")).logits
        expected.append(float(logits.softmax(dim=1)[0, 1]))
    least = sorted(expected)[2]
    found = list(Toxic(weights=str(tmp_path), least=least - 1e-4).find_in_split(items))
    assert {f.item_id: f.value for f in found} == pytest.approx(
        {f"toy/val/a/{k}": v for k, v in enumerate(expected) if v >= least}, abs=1e-5
    )
    with pytest.raises(DatasetError, match="has no label 'rude'"):
        list(Toxic(weights=str(tmp_path), label="rude").find_in_split(items))
    with pytest.raises(DatasetError, match="needs a classifier"):
        list(Toxic().find_in_split(items))


@pytest.mark.slow
def test_real_expressions(test_data: Path, home: Path) -> None:
    """How many of the real ones are flagged; all of them were read, see the changelog."""
    counts = {}
    for dataset in ("refcoco", "refcocog-umd"):
        build_dataset(dataset, load("builders", dataset), Sources(test_data / "whole-splits" / "refer"), silent)
        samples = load_samples(f"{dataset}/val")
        verdicts = [flag(s.expression) for s in samples]
        assert len(samples) == {"refcoco": 10_834, "refcocog-umd": 4_896}[dataset]
        counts[dataset] = (sum(map(bool, verdicts)), sum(any(v.action == "drop" for v in found) for found in verdicts))
    assert counts == {"refcoco": (70, 37), "refcocog-umd": (6, 2)}
