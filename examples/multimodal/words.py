"""The digits' names in many languages, scripts and spellings, and spelling mistakes."""

import numpy as np
from jaxtyping import Float

from core.data import DataSplits

NAMES = {
    "English": "zero one two three four five six seven eight nine",
    "German": "null eins zwei drei vier fünf sechs sieben acht neun",
    "French": "zéro un deux trois quatre cinq six sept huit neuf",
    "Spanish": "cero uno dos tres cuatro cinco seis siete ocho nueve",
    "Italian": "zero uno due tre quattro cinque sei sette otto nove",
    "Portuguese": "zero um dois três quatro cinco seis sete oito nove",
    "Dutch": "nul een twee drie vier vijf zes zeven acht negen",
    "Swedish": "noll ett två tre fyra fem sex sju åtta nio",
    "Danish": "nul en to tre fire fem seks syv otte ni",
    "Polish": "zero jeden dwa trzy cztery pięć sześć siedem osiem dziewięć",
    "Finnish": "nolla yksi kaksi kolme neljä viisi kuusi seitsemän kahdeksan yhdeksän",
    "Turkish": "sıfır bir iki üç dört beş altı yedi sekiz dokuz",
    "Latin": "nihil unus duo tres quattuor quinque sex septem octo novem",
    "Greek": "μηδέν ένα δύο τρία τέσσερα πέντε έξι επτά οκτώ εννέα",
    "Russian": "ноль один два три четыре пять шесть семь восемь девять",
    "Roman": "n i ii iii iv v vi vii viii ix",
    "figures": "0 1 2 3 4 5 6 7 8 9",
    "Arabic": "٠ ١ ٢ ٣ ٤ ٥ ٦ ٧ ٨ ٩",
}
CASES = (str.lower, str.title, str.upper)
FRAMES = ("{}", "{}.", "{}!", "({})", '"{}"', "- {}", "the {}", "*{}*", "<{}>", "{},")
HELD_OUT = 5  # of this many ways to write a name, one is for testing and one for validation

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DRAWS = 3  # that a misspelling takes


def spellings() -> DataSplits[list[list[str]]]:
    """For each digit the spellings of each split.

    A spelling is a name in a case and a frame of other marks. Nobody can know a name unseen, so every name is among
    those to train on; of its ways to be written, a fifth is for validation and a fifth for testing.
    """
    ways = [frame.format for frame in FRAMES]
    train, validation, test = ([[] for _ in range(10)] for _ in range(3))
    for digit in range(10):
        names = dict.fromkeys(names.split()[digit] for names in NAMES.values())
        for number, name in enumerate(names):
            written = dict.fromkeys(way(case(name)) for case in CASES for way in ways)
            for place, text in enumerate(written):
                split = {0: test, 1: validation}.get((place + number + digit) % HELD_OUT, train)
                split[digit].append(text)
    return DataSplits(train=train, validation=validation, test=test)


def misspell(text: str, draws: Float[np.ndarray, "errors 3"]) -> str:
    """One mistake after another: a letter left out, doubled, replaced, or swapped with the next."""
    for kind, place, letter in draws:
        letters = [number for number, sign in enumerate(text) if sign.isalnum()]
        if not letters:
            break
        at = letters[int(place * len(letters))]
        before, sign, after = text[:at], text[at], text[at + 1 :]
        match int(kind * 4):
            case 0 if len(letters) > 1:
                text = before + after
            case 1:
                text = before + sign + sign + after
            case 2:
                text = before + after[:1] + sign + after[1:]
            case _:
                text = before + LETTERS[int(letter * len(LETTERS))] + after
    return text
