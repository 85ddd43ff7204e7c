"""Zero-shot classification: the paper's formula, ensembles, labels in any script, every wrong input."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from dalle.apps.zeroshot import TEMPLATES, ZeroShotClassifier, read_labels
from dalle.apps.zeroshot.classifier import NULL_WORDS
from dalle.apps.zeroshot.labels import synonyms_of
from dalle.data.base import BadRecord
from dalle.data.custom.records import Record, as_record
from dalle.evaluation.templates import templates_of
from dalle.models.clip import CLIP
from dalle.text_tokenizers import SentencePieceTokenizer, TextTokenizerConfig
from support.tiny_configs import clip_config

LABELS = ["heart", "star", "लाल दिल"]


def unit(vector: torch.Tensor) -> torch.Tensor:
    return vector / vector.square().sum().sqrt()


def test_probabilities_equal_the_papers_formula(tiny_clip: CLIP) -> None:
    """Section 3.1.4, written out label by label and sentence by sentence."""
    words = {"heart": ["heart", "red heart"], "star": ["star"]}
    templates = ["a {}", "two {}s", "{}"]
    classifier = ZeroShotClassifier(tiny_clip, words, templates)
    image = Image.new("RGB", (8, 8), "red")
    vector = tiny_clip.encode_image(torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 8, 8))[0].detach()
    logits = []
    for own in words.values():
        sentences = [template.replace("{}", word) for word in own for template in templates]
        mean = sum(unit(tiny_clip.encode_text([sentence])[0].detach()) for sentence in sentences) / len(sentences)
        logits.append(float(tiny_clip.scale.detach()) * float(vector @ unit(mean)))
    expected = torch.tensor(logits).softmax(0)
    (result,) = classifier(image)
    got = dict(zip(result.labels, result.probabilities, strict=True))
    for name, value in zip(words, expected.tolist(), strict=True):
        assert got[name] == pytest.approx(value, abs=1e-5)
    assert result.probabilities == sorted(result.probabilities, reverse=True)


def test_a_label_has_the_sum_of_its_subclasses_shares(tiny_clip: CLIP) -> None:
    kinds = {"shape": ["heart", "star", "square"], "animal": ["dog", "cat"]}
    classifier = ZeroShotClassifier(tiny_clip, kinds, ["a {}", "{}"], subclasses=True)
    one_by_one = ZeroShotClassifier(tiny_clip, [word for words in kinds.values() for word in words], ["a {}", "{}"])
    image = Image.new("RGB", (8, 8), "red")
    (result,), (words,) = classifier(image), one_by_one(image)
    share = dict(zip(words.labels, words.probabilities, strict=True))
    for label, value in zip(result.labels, result.probabilities, strict=True):
        assert value == pytest.approx(sum(share[word] for word in kinds[label]), abs=1e-6)
    (beside,) = classifier(image, threshold=0.0)
    assert beside.none is not None and sum(beside.probabilities) + beside.none == pytest.approx(1)
    single = {label: words[:1] for label, words in kinds.items()}
    assert ZeroShotClassifier(tiny_clip, single, subclasses=True)(image) == ZeroShotClassifier(tiny_clip, single)(image)


def test_classification_does_not_depend_on_the_batch(tiny_clip: CLIP, tmp_path: Path) -> None:
    images = [Image.effect_noise((20, 20), 10 * n).convert("RGB") for n in range(1, 6)]
    images[0].save(tmp_path / "a.png")
    classifier = ZeroShotClassifier(tiny_clip, LABELS)
    together = classifier([tmp_path / "a.png", *images[1:]], top=2, batch_size=4)
    for image, result in zip(images, together, strict=True):
        (alone,) = classifier(image, top=2)
        assert alone.labels == result.labels and len(alone.labels) == 2
        assert alone.probabilities == pytest.approx(result.probabilities, abs=1e-5)
    assert together[0].image == str(tmp_path / "a.png")


def test_one_pixel_images_work_and_broken_ones_keep_their_place(tiny_clip: CLIP) -> None:
    classifier = ZeroShotClassifier(tiny_clip, LABELS)
    (result,) = classifier(Image.new("RGB", (1, 1)))
    assert sum(result.probabilities) == pytest.approx(1)
    good = Record("good", image=bytes(open_png()))
    found = list(classifier.predict([Record("bad", image=b"x"), good, Record("worse", fault="gone")]))
    assert [isinstance(one, BadRecord) for one in found] == [True, False, True]
    with pytest.raises(BadRecord, match=r"^image 1: the file is text"):
        classifier(b"hello")


def open_png() -> bytes:
    content = as_record(Image.new("RGB", (3, 3))).image
    assert isinstance(content, bytes)
    return content


@pytest.mark.parametrize("name", TEMPLATES)
def test_named_template_sets_are_valid(name: str) -> None:
    assert templates_of(list(TEMPLATES[name])) == TEMPLATES[name]


def test_template_sets_can_be_joined() -> None:
    joined = templates_of("emoji-en,emoji-hi")
    assert set(joined) == {*TEMPLATES["emoji-en"], *TEMPLATES["emoji-hi"]} and len(joined) == len(set(joined))


def test_label_files_are_read_and_wrong_ones_refused(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("\ufeffcat\n\nकुकुर\ndog\thound\tpuppy\n", encoding="utf-8")
    assert read_labels(file) == {"cat": ("cat",), "कुकुर": ("कुकुर",), "dog": ("hound", "puppy")}
    for content, message in (
        (b"", "is empty: expected one label per line"),
        (b"\n \n", "is empty: expected one label per line"),
        (b"\xff\xfe", "is not UTF-8 text"),
        ("é\ne\u0301\n".encode(), "occurs twice"),
        (b"a\n\tb\n", "label 2 is empty"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_labels(file)
    with pytest.raises(ValueError, match="no such file"):
        read_labels(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="cannot be read .Is a directory.: expected one label per line"):
        read_labels(tmp_path)


def test_wrong_labels_and_templates_give_a_one_line_error(tiny_clip: CLIP) -> None:
    for labels, message in (
        ([], "0 label"),
        (["a"], "1 label: give 2"),
        (["a", " "], "label 2 is empty"),
        (["a", "b", "a "], "label 'a' occurs twice"),
        ({"a": [], "b": ["b"]}, "label 'a' goes by an empty word"),
    ):
        with pytest.raises(ValueError, match=message):
            synonyms_of(labels)
    for templates, message in (
        ("photo", "there is no set of templates 'photo'"),
        ("", "there is no set of templates ''"),
        ("a {}", "to give a template itself"),
        ([], "no template"),
        (["a photo"], "expected {} once"),
        (["{} {}"], "expected {} once"),
        (["{} {x}"], "expected {} once"),
    ):
        with pytest.raises(ValueError, match=message):
            templates_of(templates)
    with pytest.raises(ValueError, match="top is 0"):
        ZeroShotClassifier(tiny_clip, LABELS)(Image.new("RGB", (2, 2)), top=0)


def test_threshold_answers_none_of_these(tiny_clip: CLIP) -> None:
    """A softmax over the labels and words for everything else, written out; what these get is the share of none."""
    classifier = ZeroShotClassifier(tiny_clip, ["heart", "Animal"], ["a {}"])
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    words = ["heart", "Animal", *(word for word in NULL_WORDS if word != "animal")]
    texts = tiny_clip.encode_text([f"a {word}" for word in words]).detach()
    logits = tiny_clip.scale.detach() * (texts @ tiny_clip.encode_image(red)[0].detach())
    wanted = logits.softmax(0)
    (result,) = classifier(Image.new("RGB", (8, 8), "red"), threshold=0.0)
    assert result.none == pytest.approx(wanted[2:].sum().item(), abs=1e-5)
    assert sum(result.probabilities) + result.none == pytest.approx(1)
    got = dict(zip(result.labels, result.probabilities, strict=True))
    assert got == pytest.approx({"heart": wanted[0].item(), "Animal": wanted[1].item()}, abs=1e-5)
    between = (result.probabilities[0] + result.probabilities[1]) / 2
    (best,) = classifier(Image.new("RGB", (8, 8), "red"), threshold=between)
    assert best.labels == result.labels[:1]
    (neither,) = classifier(Image.new("RGB", (8, 8), "red"), threshold=1.0)
    assert neither.labels == neither.probabilities == [] and neither.none == result.none
    (plain,) = classifier(Image.new("RGB", (8, 8), "red"))
    assert plain.none is None and sum(plain.probabilities) == pytest.approx(1)
    for wrong in (-0.1, 1.5):
        with pytest.raises(ValueError, match="give a probability, from 0 to 1"):
            classifier(Image.new("RGB", (8, 8)), threshold=wrong)


def test_labels_may_be_all_the_words_for_everything_else(tiny_clip: CLIP) -> None:
    (result,) = ZeroShotClassifier(tiny_clip, NULL_WORDS, ["{}"])(Image.new("RGB", (8, 8), "red"), threshold=0.0)
    got = dict(zip(result.labels, result.probabilities, strict=True))
    assert len(got) == 20 and result.none == pytest.approx(got["something else"], abs=1e-6)
    assert sum(result.probabilities) + result.none == pytest.approx(1)


def test_siglip_gives_each_label_its_own_probability() -> None:
    torch.manual_seed(0)
    siglip = CLIP(clip_config(depth=1, image_size=8, patch_size=4, text_length=32, sigmoid=True)).eval()
    siglip.tokenizer = SentencePieceTokenizer.train(TextTokenizerConfig(vocab_size=280), ["a heart", "two stars"] * 8)
    assert siglip.logit_bias is not None
    with torch.no_grad():
        siglip.logit_bias.fill_(-1.0)
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    cosines = siglip.encode_text(["heart", "star"]).detach() @ siglip.encode_image(red)[0].detach()
    wanted = [1 / (1 + math.exp(-(10 * cosine - 1))) for cosine in cosines.tolist()]
    (result,) = ZeroShotClassifier(siglip, ["heart", "star"], ["{}"])(Image.new("RGB", (8, 8), "red"), threshold=0.0)
    got = dict(zip(result.labels, result.probabilities, strict=True))
    assert got == pytest.approx({"heart": wanted[0], "star": wanted[1]}, abs=1e-5)
    assert result.none == pytest.approx((1 - wanted[0]) * (1 - wanted[1]), abs=1e-5)
    # Of subclasses, the probability that any of them fits, exact also where it is tiny
    with torch.no_grad():
        siglip.logit_bias.fill_(-30.0)
    words = siglip.encode_text(["heart", "star", "stars"]).detach() @ siglip.encode_image(red)[0].detach()
    small = [1 / (1 + math.exp(30 - 10 * cosine)) for cosine in words.tolist()]
    kinds = {"shape": ["heart", "star"], "many": ["stars"]}
    (result,) = ZeroShotClassifier(siglip, kinds, ["{}"], subclasses=True)(Image.new("RGB", (8, 8), "red"))
    got = dict(zip(result.labels, result.probabilities, strict=True))
    assert got == pytest.approx({"shape": small[0] + small[1], "many": small[2]}, rel=1e-3)
