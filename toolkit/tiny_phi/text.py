"""The text tiny-phi learns from and is examined on: generated from a seed, no data files.

Four tasks: ``command`` (home and device commands answered with a JSON action), ``arithmetic``, ``recall`` (a
needle in notes) and ``chat``. Every question has a key that does not depend on its wording; ``held_out(key)`` splits the keys, so an
examined question was never trained on in any wording.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

HELD_OUT_PERCENT = 8


@dataclass(frozen=True)
class Exchange:
    """One question with its one right answer. ``key`` names what is asked, whatever the wording."""

    task: str
    user: str
    answer: str
    key: str


Message = dict[str, str]

ROOMS = ["kitchen", "bedroom", "bathroom", "garage", "attic", "office", "hallway", "garden", "basement", "nursery"]
SWITCHES = ["light", "fan", "heater", "radio", "humidifier", "lamp", "projector", "speaker"]
COVERS = ["blinds", "curtains", "window", "door", "gate"]
GENRES = ["jazz", "rock", "folk", "opera", "blues", "pop", "soul", "techno"]
READINGS = ["temperature", "humidity", "air quality", "noise level"]
COLORS = ["red", "blue", "green", "yellow", "black", "white", "orange", "purple", "brown", "silver"]
THINGS = ["box", "key", "safe", "locker", "folder", "crate", "drawer", "suitcase", "cabinet", "envelope", "tin", "bag"]
PEOPLE = ["Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karin", "Leo"]
VERBS = [
    "watered the roses",
    "fixed the old bicycle",
    "read a long letter",
    "baked two loaves of bread",
    "painted the fence",
    "called the plumber",
    "walked along the river",
    "cleaned the windows",
    "sorted the photographs",
    "fed the cat",
    "planted an apple tree",
    "repaired the roof",
    "wrote a short story",
    "bought fresh fish",
    "missed the early train",
    "played chess",
    "hung up the coats",
    "made a pot of tea",
    "counted the chairs",
    "swept the floor",
]
TIMES = [
    "before lunch",
    "after dinner",
    "on Monday",
    "on Friday",
    "in the morning",
    "late at night",
    "during the storm",
    "last week",
    "in the spring",
    "while it rained",
    "at noon",
    "on the way home",
]
PLACES = ["market", "station", "library", "harbour", "school", "museum", "bakery", "bridge", "park", "hotel"]
CAPITALS = {
    "France": "Paris",
    "Spain": "Madrid",
    "Italy": "Rome",
    "Germany": "Berlin",
    "Austria": "Vienna",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Poland": "Warsaw",
    "Greece": "Athens",
    "Egypt": "Cairo",
    "Japan": "Tokyo",
    "Peru": "Lima",
    "Cuba": "Havana",
    "Kenya": "Nairobi",
    "Ireland": "Dublin",
}
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "open": "closed",
    "early": "late",
    "full": "empty",
    "light": "dark",
    "old": "new",
    "loud": "quiet",
    "high": "low",
    "wet": "dry",
    "hard": "soft",
}
ANIMALS = {"dog": "barks", "cat": "meows", "cow": "moos", "duck": "quacks", "horse": "neighs", "lion": "roars", "bee": "buzzes"}
WORDS = [
    "tiger",
    "river",
    "lemon",
    "stone",
    "cloud",
    "piano",
    "candle",
    "forest",
    "rocket",
    "anchor",
    "marble",
    "falcon",
    "pepper",
    "violin",
    "winter",
    "copper",
    "island",
    "velvet",
    "zebra",
    "honey",
    "mirror",
    "needle",
    "oxygen",
    "puzzle",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
SMALL_TALK = {
    "hello": "Hello! How can I help you?",
    "who": "I am tiny-phi, a very small language model.",
    "what": "I can control devices, do small sums, recall notes and chat a little.",
    "thanks": "You are welcome!",
    "bye": "Goodbye! Have a nice day.",
    "how": "I am fine, thank you.",
}
SMALL_TALK_WORDINGS = {
    "hello": ["hello", "hi", "good morning", "hey there", "good evening"],
    "who": ["who are you?", "what is your name?", "tell me who you are", "what are you?"],
    "what": ["what can you do?", "how can you help me?", "what are you good at?"],
    "thanks": ["thank you", "thanks a lot", "thanks", "many thanks"],
    "bye": ["goodbye", "bye", "see you later", "good night"],
    "how": ["how are you?", "how is it going?", "are you well?"],
}
OPENERS = ["", "", "", "please ", "could you ", "hey, ", "now "]
SYSTEM_PROMPTS = ["You are tiny-phi, a helpful assistant.", "You are a home assistant.", "Answer briefly."]


def held_out(key: str) -> bool:
    """Whether a question with this key is kept from training (a fixed share, chosen by digest)."""
    return hashlib.sha256(key.encode()).digest()[0] * 100 < HELD_OUT_PERCENT * 256


def _action(**fields: str | int) -> str:
    return json.dumps(fields)


def _switch(rng: Random) -> tuple[list[str], str]:
    device, room, state = rng.choice(SWITCHES), rng.choice(ROOMS), rng.choice(["on", "off"])
    words = [
        f"turn {state} the {room} {device}",
        f"turn the {device} in the {room} {state}",
        f"switch {state} the {device} in the {room}",
        f"switch the {room} {device} {state}",
    ]
    return words, _action(device=device, room=room, action=state)


def _dim(rng: Random) -> tuple[list[str], str]:
    room, level = rng.choice(ROOMS), rng.randrange(5, 100, 5)
    words = [
        f"dim the {room} light to {level} percent",
        f"set the light in the {room} to {level} %",
        f"set the {room} light to {level} percent",
    ]
    return words, _action(device="light", room=room, action="dim", value=level)


def _heat(rng: Random) -> tuple[list[str], str]:
    room, degrees = rng.choice(ROOMS), rng.randrange(14, 29)
    words = [
        f"set the {room} thermostat to {degrees} degrees",
        f"make the {room} {degrees} degrees",
        f"heat the {room} to {degrees} degrees",
    ]
    return words, _action(device="thermostat", room=room, action="set", value=degrees)


def _cover(rng: Random) -> tuple[list[str], str]:
    device, room, action = rng.choice(COVERS), rng.choice(ROOMS), rng.choice(["open", "close", "lock"])
    words = [f"{action} the {room} {device}", f"{action} the {device} in the {room}", f"{action} the {device} of the {room}"]
    return words, _action(device=device, room=room, action=action)


def _timer(rng: Random) -> tuple[list[str], str]:
    minutes = rng.randrange(1, 100)
    words = [f"set a timer for {minutes} minutes", f"start a {minutes} minute timer", f"remind me in {minutes} minutes"]
    return words, _action(device="timer", action="start", minutes=minutes)


def _alarm(rng: Random) -> tuple[list[str], str]:
    clock = f"{rng.randrange(24):02d}:{rng.randrange(0, 60, 5):02d}"
    words = [f"set an alarm for {clock}", f"wake me up at {clock}", f"set the alarm clock to {clock}"]
    return words, _action(device="alarm", action="set", time=clock)


def _music(rng: Random) -> tuple[list[str], str]:
    genre, room = rng.choice(GENRES), rng.choice(ROOMS)
    words = [f"play {genre} in the {room}", f"play some {genre} music in the {room}", f"I want to hear {genre} in the {room}"]
    return words, _action(device="speaker", room=room, action="play", genre=genre)


def _reading(rng: Random) -> tuple[list[str], str]:
    value, room = rng.choice(READINGS), rng.choice(ROOMS)
    words = [f"what is the {value} in the {room}?", f"read the {value} of the {room}", f"tell me the {value} in the {room}"]
    return words, _action(device="sensor", room=room, action="read", value=value)


_COMMANDS: list[Callable[[Random], tuple[list[str], str]]] = [_switch, _dim, _heat, _cover, _timer, _alarm, _music, _reading]


def command(rng: Random) -> Exchange:
    words, answer = rng.choice(_COMMANDS)(rng)
    return Exchange("command", rng.choice(OPENERS) + rng.choice(words), answer, answer)


def arithmetic(rng: Random) -> Exchange:
    sign = rng.choice(["+", "+", "-", "-", "*"])
    if sign == "*":
        a, b = rng.randrange(2, 11), rng.randrange(2, 11)
        key = f"{a}*{b} {rng.randrange(12)}"  # a times table has nothing to generalize from: wordings are held out
        wording = int(key.rsplit(" ", 1)[1])
        verb = ["times", "multiplied by", "*"][wording % 3]
        question = ["what is {}?", "calculate {}", "{} =", "tell me {}"][wording // 3]
        return Exchange("arithmetic", question.format(f"{a} {verb} {b}"), f"{a} * {b} = {a * b}", key)
    a, b = rng.randrange(61), rng.randrange(61)
    if sign == "-":
        a, b = max(a, b), min(a, b)
    result = a + b if sign == "+" else a - b
    verb = rng.choice({"+": ["plus", "+", "+"], "-": ["minus", "-", "-"]}[sign])
    question = rng.choice(["what is {}?", "calculate {}", "{} =", "tell me {}", "how much is {}?"])
    return Exchange("arithmetic", question.format(f"{a} {verb} {b}"), f"{a} {sign} {b} = {result}", f"{a}{sign}{b}")


def chat(rng: Random) -> Exchange:
    kind = rng.choice(["talk", "capital", "opposite", "animal", "next", "previous", "repeat", "repeat"])
    if kind == "talk":
        subject = rng.choice(list(SMALL_TALK))
        words, answer = SMALL_TALK_WORDINGS[subject], SMALL_TALK[subject]
    elif kind == "capital":
        subject, city = rng.choice(list(CAPITALS.items()))
        words, answer = (
            [
                f"what is the capital of {subject}?",
                f"name the capital of {subject}",
                f"which city is the capital of {subject}?",
                f"capital of {subject}?",
            ],
            f"The capital of {subject} is {city}.",
        )
    elif kind == "opposite":
        subject, other = rng.choice(list(OPPOSITES.items()))
        words, answer = (
            [f"what is the opposite of {subject}?", f"name the opposite of {subject}", f"opposite of {subject}?"],
            (f"The opposite of {subject} is {other}."),
        )
    elif kind == "animal":
        subject, sound = rng.choice(list(ANIMALS.items()))
        words, answer = (
            [f"what does a {subject} do?", f"which sound does a {subject} make?", f"what sound does the {subject} make?"],
            (f"A {subject} {sound}."),
        )
    elif kind == "repeat":
        answer = " ".join(rng.choice([rng.choice(WORDS), str(rng.randrange(1000))]) for _ in range(rng.randrange(1, 5)))
        words = [f"repeat: {answer}", f"say {answer}", f"repeat after me: {answer}"]
    else:
        index = rng.randrange(7)
        subject, step = DAYS[index], 1 if kind == "next" else -1
        place = "after" if step == 1 else "before"
        words, answer = (
            [f"which day comes {place} {subject}?", f"what day is {place} {subject}?", f"tell me the day {place} {subject}"],
            (f"{DAYS[(index + step) % 7]} comes {place} {subject}."),
        )
    opener, wording = rng.choice(["", "", "please: ", "tell me, ", "one question: ", "hey, "]), rng.choice(words)
    user = opener + wording
    return Exchange("chat", user, answer, user)


def filler(rng: Random) -> str:
    """One sentence that carries nothing anybody asks for."""
    kind = rng.randrange(4)
    if kind == 0:
        return f"{rng.choice(PEOPLE)} and {rng.choice(PEOPLE)} met at the {rng.choice(PLACES)} {rng.choice(TIMES)}."
    if kind == 1:
        return f"Bus {rng.randrange(1, 100)} stops near the {rng.choice(PLACES)}."
    return f"{rng.choice(PEOPLE)} {rng.choice(VERBS)} {rng.choice(TIMES)}."


@dataclass(frozen=True)
class Needles:
    """Facts hidden in notes, and the questions about them."""

    sentences: list[str]
    questions: list[Exchange]


def needles(rng: Random, count: int) -> Needles:
    """``count`` facts (at most 10), each about another thing of another colour: half passwords (a word), half codes (four digits)."""
    sentences, questions = [], []
    for color, thing in zip(rng.sample(COLORS, count), rng.sample(THINGS, count), strict=True):
        kind, value = rng.choice([("password", rng.choice(WORDS)), ("code", f"{rng.randrange(10000):04d}")])
        owner = f"{color} {thing}"
        sentences.append(f"The {kind} of the {owner} is {value}.")
        wording = rng.choice(["what is the {} of the {}?", "tell me the {} of the {}", "I need the {} of the {}", "{} of the {}?"])
        questions.append(Exchange("recall", wording.format(kind, owner), value, f"{owner} {value}"))
    return Needles(sentences, questions)


def notes(rng: Random, sentences: Sequence[str], fillers: int) -> str:
    """The given sentences at random places among ``fillers`` others."""
    text = list(sentences) + [filler(rng) for _ in range(fillers)]
    rng.shuffle(text)
    return " ".join(text)


def plain_question(rng: Random, *, examined: bool) -> Exchange:
    """A command, sum or chat question from the held-out keys if ``examined``, else from the others."""
    make = rng.choice([command, command, arithmetic, arithmetic, arithmetic, chat, chat])
    while True:
        exchange = make(rng)
        if held_out(exchange.key) == examined:
            return exchange


def conversation(rng: Random, words: int, hardness: float = 1.0) -> list[Message]:
    """A conversation for training, of at least ``words`` words: plain questions, and notes with questions about them.

    ``hardness`` (0..1) scales how many needles a note holds and how much else stands around them.
    """
    messages: list[Message] = []
    said = 0

    def say(user: str, answer: str) -> None:
        nonlocal said
        messages.extend([{"role": "user", "content": user}, {"role": "assistant", "content": answer}])
        said += len(user.split()) + len(answer.split())

    if rng.random() < 0.15:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    pending: list[Exchange] = []
    while said < words:
        draw = rng.random()
        if pending and draw < 0.5:
            exchange = pending.pop(rng.randrange(len(pending)))
            say(exchange.user, exchange.answer)
        elif draw < 0.65:
            count = rng.randrange(1, 2 + round(5 * hardness))
            found = needles(rng, count)
            fillers = rng.randrange(0, 1 + round(hardness * max(4, min(200, words // 6))))
            if rng.random() < 0.5:
                question = found.questions.pop(rng.randrange(count))
                say("Notes: " + notes(rng, found.sentences, fillers) + "\nQuestion: " + question.user, question.answer)
            else:
                say("Remember these notes. " + notes(rng, found.sentences, fillers), "Noted.")
            pending = found.questions
        else:
            exchange = plain_question(rng, examined=False)
            say(exchange.user, exchange.answer)
    return messages


@dataclass(frozen=True)
class Examination:
    """A prompt of the examination: the messages up to the question, and the one right answer."""

    task: str
    messages: list[Message]
    answer: str


def examination(rng: Random, task: str, fillers: int) -> Examination:
    """A held-out question of ``task`` behind notes of ``fillers`` sentences (0: the question alone, but for recall)."""
    if task == "recall":
        found = needles(rng, rng.randrange(1, 5))
        question = rng.choice(found.questions)
        text = notes(rng, found.sentences, fillers)
        if rng.random() < 0.5:
            return Examination(task, [{"role": "user", "content": f"Notes: {text}\nQuestion: {question.user}"}], question.answer)
        history = [{"role": "user", "content": "Remember these notes. " + text}, {"role": "assistant", "content": "Noted."}]
    else:
        while True:
            question = plain_question(rng, examined=True)
            if question.task == task:
                break
        history = []
        if fillers:
            text = notes(rng, needles(rng, rng.randrange(1, 5)).sentences, fillers)
            history = [{"role": "user", "content": "Remember these notes. " + text}, {"role": "assistant", "content": "Noted."}]
    return Examination(task, [*history, {"role": "user", "content": question.user}], question.answer)


TASKS = ("command", "arithmetic", "recall", "chat")
