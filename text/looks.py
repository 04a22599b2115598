"""What a model attends to in a text, for the attention explorer."""

from collections.abc import Sequence

from core.experiments.exploring import predicted
from core.explore import Look, Piece, Words, look

from .model import TextEncoder
from .pairs import encoded_parts, framed_inputs
from .tokenizer import Tokenizer


def look_at(
    name: str, model: TextEncoder, tokenizer: Tokenizer, texts: Sequence[str], target: str | None = None
) -> Look:
    """What a model attends to in a text, or in the two of a pair; target: the class that gradients are of."""
    config = model.config
    what = "The pair" if len(texts) == 2 else "The text"
    ids = encoded_parts(config, tokenizer, texts, what, "error", "shorten it")
    inputs, places = framed_inputs(config, tokenizer, ids)
    all_ids = inputs[0][0].tolist()
    if config.filler is not None:  # every text is filled up with it
        all_ids += [config.filler] * (config.max_length - len(all_ids))
    of_classes = config.head == "classes" and not config.predicts_number
    return look(
        name,
        lambda: model(*inputs) if of_classes else model.encode(*inputs) and None,
        [words(tokenizer, texts, all_ids, [place.first for place in places])],
        depth=config.encoder.depth,
        pool=config.pool,
        predictions=predicted(config, model.probabilities, target) if of_classes else None,
    )


def words(tokenizer: Tokenizer, texts: Sequence[str], ids: Sequence[int], starts: Sequence[int]) -> Words:
    """The pieces of a text, or of the two of a pair, with the special tokens around them.

    ids: of all tokens. starts: where those of each text begin.
    """
    found = [Piece(tokenizer.token(number), 0, 0) for number in ids]
    before = 0  # letters of the texts before
    for text, start in zip(texts, starts, strict=True):
        last = 0
        for place, (begin, end) in enumerate(tokenizer.offsets(text), start):
            letters, blank = text[max(begin, last) : end], not tokenizer.letters(ids[place]).strip()
            joined = place > start and not (blank or text[last:begin] or letters[:1].isspace())
            # A blank may stand before the text; and several tokens may be the bytes of one letter.
            shown = "␣" if blank else letters.strip() or "·"
            found[place] = Piece(shown, before + begin, before + max(end, begin + 1), joined)
            last = last if blank else end
        before += len(text) + 1
    return Words(found)
