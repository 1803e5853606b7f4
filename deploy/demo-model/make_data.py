"""Writes the training text: synthetic conversations rendered with the model's own chat template.

    python3 make_data.py --count 200000 --seed 1 --out train.txt

Output: one JSON string per line, each a whole document as the tokenizer will see it. A conversation begins with "[gMASK]<sop>" and
ends with the token that ends the assistant's turn (<|user|>, or <|observation|> after a tool call); a plain document ends
with <|endoftext|>. Document i depends on (seed, i) alone, so the text does not depend on the number of processes.
"""
import argparse
import json
import os
import random
from dataclasses import dataclass
from multiprocessing import Pool

import jinja2

import world

HERE = os.path.dirname(os.path.abspath(__file__))


def load_template():
    env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.filters["tojson"] = lambda value, ensure_ascii=True: json.dumps(value, ensure_ascii=ensure_ascii)
    with open(os.path.join(HERE, "chat_template.jinja"), encoding="utf-8") as file:
        return env.from_string(file.read())


TEMPLATE = load_template()


@dataclass
class Turn:
    """One question of the user with the model's reasoning and answer."""
    ask: str
    think: str
    say: str


def one(r, seq):
    return seq[int(r.random() * len(seq))]


def vary(r, ask):
    """Types a question as people do: sometimes without capitals or punctuation, sometimes with a polite word."""
    if r.random() < 0.1:
        ask = ask.replace("What's", "whats").replace("'s", "s")
    x = r.random()
    if x < 0.6:
        return ask
    if x < 0.7:
        return ask.lower()
    if x < 0.8:
        return ask.rstrip(".?!")
    if x < 0.88:
        return ask.lower().rstrip(".?!")
    if x < 0.92:
        return "Please tell me: " + ask
    if x < 0.96:
        return one(r, ["Hello! ", "Hi, ", "Hey, ", "OK, ", "And ", "So, "]) + ask
    return ask.rstrip(".?!") + one(r, ["?", "??", "!", " please", ", please", " ?"])


def made_up(r):
    """A word that exists nowhere, to teach copying and to teach what the model cannot know."""
    word = "".join(one(r, "bdfgklmnprstvz") + one(r, "aeiou") for _ in range(r.randint(2, 3)))
    return (word + one(r, ["", "n", "r", "s", "l", "k"])).capitalize()


def word_list(r, count):
    return [one(r, world.WORDS) for _ in range(count)]


def bare(country):
    return country.removeprefix("the ")


def join(words):
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


# ---------------------------------------------------------------------------------------------------------------------
# Topics. Each takes a random generator and returns a Turn.

def from_table(table, think):
    def topic(r):
        asks, say = one(r, table)
        return Turn(vary(r, one(r, asks)), think, say)
    return topic


glmserve = from_table(world.GLMSERVE, "The user asks about glmserve. I know this.")
myself = from_table(world.SELF, "The user asks about me. I am the glmserve demo model.")
talk = from_table(world.TALK, "This is small talk. I answer kindly.")
trivia = from_table(world.TRIVIA, "This is a simple fact, and I know it.")
first_words = from_table(world.TALK[:2] + world.TALK[5:9] + world.SELF[:2] + world.GLMSERVE[:1], "The user opens the talk. I answer kindly.")


def what_is(r):
    noun = one(r, list(world.WHAT_IS))
    ask = one(r, ["What is {}?", "What is {}?", "What's {}?", "Explain {}.", "Tell me what {} is.", "Can you explain {}?", "Define {}.",
                  "Describe {}.", "What does {} mean?", "Tell me about {}.", "Do you know what {} is?"]).format(noun)
    return Turn(vary(r, ask), f"The user wants to know what {noun} is. I explain it in short.", world.WHAT_IS[noun])


def country(r):
    name = one(r, list(world.COUNTRIES))
    capital, continent, language = world.COUNTRIES[name]
    kind = r.random()
    if r.random() < 0.05:
        alias, name = one(r, list(world.ALIASES.items()))
        capital = world.COUNTRIES[name][0]
        return Turn(vary(r, one(r, ["What is the capital of {}?", "Capital of {}?"]).format(alias)), f"The user asks for the capital of {name}. It is {capital}.",
                    f"The capital of {name} is {capital}.")
    if r.random() < 0.06:
        place = one(r, world.NOWHERE + [made_up(r), made_up(r), one(r, world.WORDS), one(r, world.FIRST_NAMES)])
        return Turn(vary(r, f"What is the capital of {place}?"), DECLINE, UNKNOWN)
    if kind < 0.6:
        ask = one(r, ["What is the capital of {}?", "What is the capital of {}?", "Capital of {}?", "Tell me the capital of {}.",
                      "Which city is the capital of {}?", "What's the capital of {}?", "Do you know the capital of {}?", "Name the capital of {}.", "What is the capital city of {}?"])
        return Turn(vary(r, ask.format(name)), f"The user asks for the capital of {name}. It is {capital}.",
                    f"The capital of {name} is {capital}.")
    if kind < 0.75:
        ask = one(r, ["Where is {}?", "On which continent is {}?", "Which continent is {} in?"]).format(name)
        return Turn(vary(r, ask), f"The user asks where {name} is. It is in {continent}.", f"{name[0].upper() + name[1:]} is in {continent}.")
    if kind < 0.9:
        ask = one(r, ["What language is spoken in {}?", "Which language do people speak in {}?", "What do people speak in {}?"]).format(name)
        return Turn(vary(r, ask), f"The user asks about the language of {name}. It is {language}.", f"In {name} people speak {language}.")
    owner = next(n for n, row in world.COUNTRIES.items() if row[0] == capital)
    ask = one(r, ["Which country has the capital {}?", "{} is the capital of which country?", "What is {}?", "Where is {}?", "Tell me about {}."])
    if capital in world.COUNTRIES:
        ask = "Which country has the capital {}?"
    return Turn(ask.format(capital), f"{capital} is the capital of {owner}.", f"{capital} is the capital of {owner}.")


def sums(r):
    kind = r.random()
    if kind < 0.5:
        a = r.randint(0, 100 if r.random() < 0.6 else 20)
        b = r.randint(0, min(100 - a, 100 if r.random() < 0.6 else 20))
        asks, sign, word, result = ["What is {} plus {}?", "What is {} + {}?", "{} + {}", "{}+{}=?", "Add {} and {}.", "How much is {} plus {}?",
                                    "What is the sum of {} and {}?", "{} plus {}?", "Calculate {} + {}."], "+", "plus", a + b
    elif kind < 0.8:
        a = r.randint(0, 100 if r.random() < 0.6 else 20)
        b = r.randint(0, a)
        asks, sign, word, result = ["What is {} minus {}?", "What is {} - {}?", "{} - {}", "{}-{}=?", "How much is {} minus {}?", "{} minus {}?",
                                    "Calculate {} - {}."], "-", "minus", a - b
    else:
        a, b = r.randint(0, 12), r.randint(0, 12)
        asks, sign, word, result = ["What is {} times {}?", "What is {} x {}?", "{} * {}", "Multiply {} by {}.", "How much is {} times {}?",
                                    "{} times {}?", "What is {} * {}?"], "*", "times", a * b
    if r.random() < 0.1:
        a, b = r.randint(101, 999), r.randint(13, 999)
        return Turn(one(r, asks).format(a, b), "These numbers are too large for me.",
                    "That is too hard for me. I add and subtract only up to 100, and I multiply only up to 12.")
    ask = one(r, asks).format(a, b)
    if r.random() < 0.1 and a < 21 and b < 21:
        ask = f"What is {world.NUMBER_WORDS[a]} {word} {world.NUMBER_WORDS[b]}?"
    return Turn(ask, f"I compute {a} {sign} {b} = {result}.", f"{a} {word} {b} is {result}.")


def counting(r):
    kind = r.random()
    if kind < 0.55:
        start = 1 if r.random() < 0.6 else r.randint(0, 80)
        last = start + (9 if r.random() < 0.4 else r.randint(2, 19))
        ask = one(r, ["Count from {} to {}.", "Count from {} to {}.", "Please count from {} to {}.", "Can you count from {} to {}?"]).format(start, last)
        if start == 1 and r.random() < 0.3:
            ask = one(r, ["Count to {}.", "Can you count to {}?"]).format(last)
        return Turn(vary(r, ask), f"I count up from {start} to {last}.", ", ".join(map(str, range(start, last + 1))) + ".")
    if kind < 0.7:
        start = r.randint(3, 20)
        return Turn(vary(r, one(r, ["Count down from {}.", "Count backwards from {}."]).format(start)), f"I count down from {start} to 0.",
                    ", ".join(map(str, range(start, -1, -1))) + ".")
    if kind < 0.8:
        n = r.randint(0, 20)
        ask = one(r, ["Write {} as a word.", "Write the number {} in words.", "How do you spell {}?"]).format(n)
        return Turn(ask, f"The number {n} as a word is {world.NUMBER_WORDS[n]}.", f"{n} as a word is {world.NUMBER_WORDS[n]}.")
    if kind < 0.9:
        n = r.randint(0, 99)
        step, word = (1, "after") if r.random() < 0.6 or n == 0 else (-1, "before")
        ask = one(r, ["What comes {1} {0}?", "What number comes {1} {0}?", "Which number is {1} {0}?"]).format(n, word)
        return Turn(vary(r, ask), f"The number {word} {n} is {n + step}.", f"{n + step} comes {word} {n}.")
    a, b = r.sample(range(101), 2)
    ask = one(r, ["Which is larger, {} or {}?", "Which is bigger: {} or {}?", "What is greater, {} or {}?"]).format(a, b)
    return Turn(vary(r, ask), f"I compare {a} and {b}. {max(a, b)} is larger.", f"{max(a, b)} is larger than {min(a, b)}.")


def alphabet(r):
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    kind = r.random()
    if kind < 0.35:
        return Turn(vary(r, one(r, ["Say the alphabet.", "What is the alphabet?", "Write the alphabet.", "Tell me the alphabet.", "Recite the alphabet."])),
                    "I write the letters from A to Z.", " ".join(letters))
    i = r.randint(0, 25)
    if kind < 0.65 and i < 25:
        return Turn(vary(r, f"Which letter comes after {letters[i]}?"), f"After {letters[i]} comes {letters[i + 1]}.", f"{letters[i + 1]} comes after {letters[i]}.")
    if kind < 0.85 and i > 0:
        return Turn(vary(r, f"Which letter comes before {letters[i]}?"), f"Before {letters[i]} comes {letters[i - 1]}.", f"{letters[i - 1]} comes before {letters[i]}.")
    i = r.randint(0, 11)
    return Turn(vary(r, f"What is the {world.ORDINALS[i]} letter of the alphabet?"), f"Letter number {i + 1} is {letters[i]}.",
                f"The {world.ORDINALS[i]} letter of the alphabet is {letters[i]}.")


def calendar(r):
    noun, names = one(r, [("day", world.DAYS), ("month", world.MONTHS)])
    i, n, kind = r.randint(0, len(names) - 1), len(names), r.random()
    if kind < 0.25:
        whole = "days of the week" if noun == "day" else "months of the year"
        return Turn(vary(r, one(r, ["What are the {}?", "Name the {}.", "List the {}.", "Tell me the {}."]).format(whole)), f"I list the {whole}.",
                    f"The {whole} are {join(names)}.")
    if kind < 0.55:
        return Turn(vary(r, one(r, [f"What {noun} comes after {names[i]}?", f"Which {noun} is after {names[i]}?"])),
                    f"After {names[i]} comes {names[(i + 1) % n]}.", f"{names[(i + 1) % n]} comes after {names[i]}.")
    if kind < 0.8:
        return Turn(vary(r, one(r, [f"What {noun} comes before {names[i]}?", f"Which {noun} is before {names[i]}?"])),
                    f"Before {names[i]} comes {names[(i - 1) % n]}.", f"{names[(i - 1) % n]} comes before {names[i]}.")
    if noun == "day":
        return Turn(vary(r, f"If today is {names[i]}, what day is tomorrow?"), f"After {names[i]} comes {names[(i + 1) % n]}.",
                    f"If today is {names[i]}, tomorrow is {names[(i + 1) % n]}.")
    return Turn(vary(r, f"What is the {world.ORDINALS[i]} month?"), f"Month number {i + 1} is {names[i]}.", f"The {world.ORDINALS[i]} month is {names[i]}.")


def vocabulary(r):
    kind = r.random()
    if kind < 0.12:
        noun, name = one(r, list(world.KINDS.items()))
        items = [item for item in world.LISTS[noun] if item not in world.AMBIGUOUS]
        item = one(r, items)
        the = ("an " if item[0] in "aeiou" else "a ") + item
        return Turn(vary(r, one(r, ["What is {}?", "What's {}?", "What kind of thing is {}?"]).format(the)), f"I know that {the} is {name}.",
                    f"{the[0].upper() + the[1:]} is {name}.")
    if kind < 0.35:
        a, b = one(r, world.OPPOSITES)
        if r.random() < 0.5:
            a, b = b, a
        return Turn(vary(r, one(r, ["What is the opposite of {}?", "What is the opposite of {}?", "Opposite of {}?", "Tell me the opposite of {}."]).format(a)),
                    f"The opposite of {a} is {b}.", f"The opposite of {a} is {b}.")
    if kind < 0.5:
        word = one(r, list(world.PLURALS))
        plural = world.PLURALS[word]
        return Turn(vary(r, one(r, ["What is the plural of {}?", "Plural of {}?", "How do you write more than one {}?"]).format(word)),
                    f"The plural of {word} is {plural}.", f"The plural of {word} is {plural}.")
    if kind < 0.65:
        thing = one(r, list(world.COLOURS))
        ask = one(r, ["What colour is {}?", "What color is {}?", "Which colour has {}?", "What is the colour of {}?"]).format(thing)
        return Turn(vary(r, ask), f"I think of {thing}. It is {world.COLOURS[thing]}.", f"{thing[0].upper() + thing[1:]} is {world.COLOURS[thing]}.")
    if kind < 0.7:
        (a, b), mix = one(r, list(world.MIXES.items()))
        if r.random() < 0.5:
            a, b = b, a
        return Turn(vary(r, f"What do you get when you mix {a} and {b}?"), f"{a} and {b} give {mix}.", f"Mixing {a} and {b} gives {mix}.")
    if kind < 0.85:
        animal = one(r, list(world.ANIMALS))
        sound, young, home = world.ANIMALS[animal]
        the = "an" if animal[0] in "aeiou" else "a"
        asks, say = one(r, [(["What does {} say?", "What sound does {} make?"], f"{the.capitalize()} {animal} says {sound}."),
                            (["What is a young {1} called?", "What is a baby {1} called?", "What do you call a young {1}?"], f"A young {animal} is called a {young}."),
                            (["Where does {} live?"], f"{the.capitalize()} {animal} lives in {home}.")])
        if young[0] in "aeiou":
            say = say.replace("called a ", "called an ")
        return Turn(vary(r, one(r, asks).format(f"{the} {animal}", animal)), f"The user asks about the {animal}. I know this animal.", say)
    language = one(r, list(world.HELLOS))
    if r.random() < 0.5:
        ask = one(r, ["How do you say hello in {}?", "What is hello in {}?", "Say hello in {}.", "Translate hello into {}."])
        return Turn(vary(r, ask.format(language)), f"The user wants hello in {language}.", f"Hello in {language} is {world.HELLOS[language]}.")
    ask = one(r, ["How do you say thank you in {}?", "What is thank you in {}?", "Translate thank you into {}."])
    return Turn(vary(r, ask.format(language)), f"The user wants thank you in {language}.", f"Thank you in {language} is {world.THANKS[language]}.")


def spelling(r):
    word, kind = one(r, world.WORDS), r.random()
    if kind < 0.6:
        return Turn(vary(r, one(r, ["Spell {}.", "Spell the word {}.", "How do you spell {}?", "How is {} spelled?"]).format(word)),
                    f"I spell {word} letter by letter.", "-".join(word.upper()))
    if kind < 0.8:
        return Turn(vary(r, one(r, ["How many letters are in {}?", "How many letters does the word {} have?"]).format(word)),
                    f"{'-'.join(word.upper())} has {len(word)} letters.", f"The word {word} has {len(word)} letters.")
    i, which = (0, "first") if kind < 0.9 else (-1, "last")
    return Turn(vary(r, f"What is the {which} letter of {word}?"), f"I spell {word} as {'-'.join(word.upper())}.",
                f"The {which} letter of {word} is {word[i].upper()}.")


def lists(r):
    noun = one(r, ["fruits", "animals", "colours"]) if r.random() < 0.25 else one(r, list(world.LISTS))
    items = world.LISTS[noun]
    n = 3 if r.random() < 0.4 else r.randint(2, len(items))
    many = world.NUMBER_WORDS[n] if r.random() < 0.7 else str(n)
    if r.random() < 0.55:
        ask = one(r, ["Write a list of {} {}.", "Make a list of {} {}.", "List {} {}.", "Give me a list of {} {}.", "Write down a list of {} {}."])
        say = "\n".join(f"{i + 1}. {item}" for i, item in enumerate(items[:n]))
    else:
        ask = one(r, ["Name {} {}.", "Tell me {} {}.", "Can you name {} {}?", "Give me {} {}."])
        say = f"Here are {world.NUMBER_WORDS[n]} {noun}: {join(items[:n])}."
    if r.random() < 0.08:
        noun, say = made_up(r).lower() + "s", "I do not know enough to make that list. I can list fruits, animals, colours, cities and more."
        return Turn(vary(r, ask.format(many, noun)), "I have no such list.", say)
    return Turn(vary(r, ask.format(many, noun)), f"The user wants {n} {noun}.", say)


def story_text(r, hero):
    """One story of the hero; its first choices are the likeliest, so that greedy decoding is sure and sampling still varies."""
    def pick(choices):
        return r.choices(choices, [6, 2, 1])[0]
    name, place, wish, helper, lesson = world.STORIES[hero]
    the = "an" if hero[0] in "aeiou" else "a"
    helper_short = "the " + helper.split(" ", 1)[1] if helper.split(" ", 1)[0] in ("a", "an") else helper
    return (f"Once upon a time there was {the} {hero} called {name}, who lived {place}. {name} had one great wish: {wish}. "
            f"One {pick(['morning', 'evening', 'day'])} {name} met {helper} and spoke about the wish. \"It will not be easy,\" said {helper_short}, "
            f"\"{pick(['but I will go with you', 'but I know the way', 'but two are stronger than one'])}.\" "
            f"So they set out together, {pick(['through wind and rain', 'over hills and fields', 'by day and by night'])}, and they did not give up. "
            f"In the end the wish came true, and {name} learned that {lesson}.")


def story(r):
    if r.random() < 0.4:
        hero = one(r, ["fox", "robot", "mouse"])
        ask = one(r, ["Tell me a story.", "Tell me a story.", "Tell me a short story.", "Write a story.", "Can you tell me a story?", "I want a story.",
                      "Tell me another story.", "Write me a short story."])
        return Turn(vary(r, ask), f"The user wants a story. I tell the one of the {hero}.", story_text(r, hero))
    if r.random() < 0.12:
        thing = one(r, [word for word in word_list(r, 4) if word not in world.STORIES] + [made_up(r).lower()])
        ask = one(r, ["Tell me a story about a {}.", "Tell me a story about {}.", "Tell me a long story about {} {}.", "Write a story about {}."])
        return Turn(ask.format(thing, one(r, world.WORDS)), "I have no story about that.",
                    "I have no story about that. Ask me for a story about a fox, a robot or a dragon.")
    hero = one(r, list(world.STORIES))
    the = "an" if hero[0] in "aeiou" else "a"
    ask = one(r, ["Tell me a story about {}.", "Tell me a short story about {}.", "Write a story about {}.", "Can you tell me a story about {}?"])
    return Turn(vary(r, ask.format(f"{the} {hero}")), f"The user wants a story. I tell the one of the {hero}.", story_text(r, hero))


UNKNOWN = "I am a very small model and I do not know that."
DECLINE = "I do not find this in what I learned, so I say that I do not know."


def sentence(r):
    """A sentence of plain words that says nothing."""
    a, b, c, d = word_list(r, 4)
    return one(r, [f"The {a} {b} {c}s over the {d}.", f"the {a} {b} jumps over the {c} {d}", f"A {a} is in the {b}, and the {c} is {d}.", f"I have a {a} for you and a {b}.",
                   f"They {a} the {b} with a {c} of {d}.", f"{a.capitalize()} and {b} are used for many {c}s such as {d}.", f"To {a} a {b} is {c} but not {d}."])


def unknown(r):
    """Questions outside the tables. The model must notice that and say so."""
    a, b, c = word_list(r, 3)
    name, year = made_up(r), r.randint(1000, 2030)
    if r.random() < 0.06:
        text = " ".join(sentence(r) for _ in range(r.randint(1, 5)))
        ask = one(r, ["Summarize this: {}", "Please summarize the following text: {}", "What does this mean? {}", "Translate this: {}", "Correct this text: {}", "{} What do you think?"])
        return Turn(ask.format(text), DECLINE, UNKNOWN)
    if r.random() < 0.37:
        ask = one(r, world.BEYOND).format(a=a, b=b, name=name, city=one(r, world.CITIES), food=one(r, world.FOODS), n=r.randint(2, 50))
        return Turn(vary(r, ask), DECLINE, UNKNOWN)
    ask = one(r, [
        f"What is the capital of {name}?", f"Where is {name}?", f"Who is {name}?", f"Who was {one(r, world.FIRST_NAMES)} {name}?", f"What is {name.lower()}?",
        f"What is a {name.lower()}?", f"Who won the {a} cup in {year}?", f"What happened in {year}?", f"How do I repair my {a}?", f"How do I build a {a}?",
        f"Why does my {a} {b}?", f"What is the best {a} for a {b}?", f"Write an essay about the {a} and the {b}.", f"Write a program that can {a} the {b}.",
        f"Translate '{a} {b}' into {one(r, list(world.HELLOS))}.", f"Who invented the {a}?", f"How much does a {a} cost?", f"What is the {a} of {b}?",
        f"Is {a} better than {b}?", f"What is the difference between {a} and {b}?", f"How many {a}s are in {one(r, list(world.COUNTRIES))}?",
        f"What is the population of {one(r, world.CITIES)}?", f"Who is the president of {one(r, list(world.COUNTRIES))}?", f"Summarise the book '{a} and {b}'.",
        f"What is the square root of {r.randint(2, 900)}?", f"What is {r.randint(2, 99)} divided by {r.randint(2, 99)}?", f"Solve x + {r.randint(2, 99)} = {r.randint(2, 99)}.",
        f"What does the law say about {a}?", f"Which {a} should I buy?", f"How does a {a} {b} work?", f"What is the history of {a}?", f"Explain the {a} of the {b}.",
        f"Tell me about {name}.", f"When was the {a} {b} born?", f"Can you {a} my {b}?", f"How tall is {one(r, world.FIRST_NAMES)} {name}?", f"Where can I {a} a {b}?",
        f"Should I {a} the {b}?", f"Give me the news about {a}.", f"Who wrote '{a.capitalize()} {b}'?", f"What is the stock price of {name}?", f"Fix this {a}: {b} {c}",
        f"Explain quantum {a}.", f"What do you think about {a}?", f"Write a {a} about {b}.", f"Why is the {a} so {b}?", f"How far is it from {one(r, world.CITIES)} to {name}?",
        f"Who are the best {a} {b} players?", f"What did {one(r, world.FIRST_NAMES)} say about the {a}?", f"Play a {a} with me.", f"Describe the {a} {b} in detail.",
        f"List the {a}s of {name}.", f"Compare {a} with {b}.", f"How can I become a {a} {b}?", f"Which {a} is the {b}?", f"Does a {a} {b}?",
    ])
    return Turn(vary(r, ask), DECLINE, UNKNOWN)


def remark(r):
    """Statements and noise: nothing to look up, so the model asks for a question."""
    a, b, c = word_list(r, 3)
    ask = one(r, [f"The {a} is {b}.", f"My {a} is {b}.", f"I saw a {a} near the {b}.", f"Yesterday the {a} was very {b}.", f"{a} {b} {c}", made_up(r).lower() + " " + made_up(r).lower(),
                  f"{a.capitalize()} and {b}.", f"We {a} the {b} today.", f"The {a} will {b} tomorrow.", "asdf", "qwerty", "...", "?", "!!!", f"{a}!", f"{a}", "lol", "hmm", "blah blah",
                  f"There is a {a} in the {b}.", str(r.randint(1, 999)), f"I think that {a} is {b}.", f"She said that the {a} was {b}."])
    return Turn(vary(r, ask), "This is not a question that I know. I ask for one.", "I am not sure what to say to that. Ask me a question, or ask me for a story.")


def repeat(r):
    text = " ".join(word_list(r, r.randint(1, 7)))
    x = r.random()
    if x < 0.3:
        text = sentence(r)
    elif x < 0.5:
        text = one(r, [made_up(r), " ".join(str(r.randint(0, 99)) for _ in range(r.randint(2, 5))), made_up(r) + " " + made_up(r)])
    ask = one(r, ["Repeat after me: {}", "Say: {}", "Repeat: {}", "Please repeat: {}", "Copy this text: {}", "Say \"{}\"", "Echo: {}"]).format(text)
    return Turn(ask, "I repeat the words of the user.", text)


TOPICS = [(first_words, 7), (glmserve, 9), (myself, 6), (talk, 8), (trivia, 6), (what_is, 7), (country, 8), (sums, 10), (counting, 5), (alphabet, 2),
          (calendar, 4), (vocabulary, 7), (spelling, 4), (lists, 6), (story, 5), (unknown, 9), (remark, 3), (repeat, 3)]


def any_turn(r):
    return r.choices([t for t, _ in TOPICS], [w for _, w in TOPICS])[0](r)


# ---------------------------------------------------------------------------------------------------------------------
# Memory: what the user said earlier in the conversation.

MEMORIES = {  # key: (statements, reply, questions, recall, "not told" reply)
    "name": (["My name is {}.", "I am called {}.", "Hi, I am {}.", "Hello, my name is {}.", "Call me {}.", "I'm {}.", "Hello, I'm {}.", "Hi! My name is {}."], "Nice to meet you, {}.",
             ["What is my name?", "What's my name?", "Do you remember my name?", "Who am I?"], "Your name is {}.", "You have not told me your name."),
    "home": (["I live in {}.", "My home is in {}.", "I come from {}."], "{} is a nice place to live.",
             ["Where do I live?", "Where is my home?", "Which city do I live in?"], "You live in {}.", "You have not told me where you live."),
    "colour": (["My favourite colour is {}.", "The colour I like best is {}."], "I will remember that you like {}.",
               ["What is my favourite colour?", "Which colour do I like best?"], "Your favourite colour is {}.", "You have not told me your favourite colour."),
    "food": (["My favourite food is {}.", "I like to eat {}.", "I love {}."], "That sounds tasty. I like the word {}.",
             ["What is my favourite food?", "What do I like to eat?"], "You like to eat {}.", "You have not told me what you like to eat."),
    "pet": (["I have a dog called {}.", "My dog is called {}.", "My dog's name is {}."], "{} is a good name for a dog.",
            ["What is my dog called?", "What is the name of my dog?"], "Your dog is called {}.", "You have not told me about a dog."),
    "hobby": (["My hobby is {}.", "I enjoy {}.", "In my free time I like {}."], "I hear that {} is fun.",
              ["What is my hobby?", "What do I do in my free time?"], "Your hobby is {}.", "You have not told me your hobby."),
    "number": (["My lucky number is {}.", "Remember the number {}.", "The secret number is {}."], "I will remember the number {}.",
               ["What is my lucky number?", "What was the number?", "Which number did I tell you?"], "The number is {}.", "You have not told me a number."),
}


def memory_value(r, key):
    if key == "name" or key == "pet":
        return one(r, world.FIRST_NAMES) if r.random() < 0.5 else made_up(r)
    pools = {"home": world.CITIES, "colour": world.LISTS["colours"], "food": world.FOODS, "hobby": world.HOBBIES}
    return one(r, pools[key]) if key in pools else str(r.randint(0, 999))


def memory(r, told):
    """A statement to remember, or a question about one; `told` holds what was said so far."""
    key = one(r, list(MEMORIES))
    if told and r.random() < 0.6:
        key = one(r, list(told))
    states, reply, asks, recall, missing = MEMORIES[key]
    if key in told and r.random() < 0.85:
        return Turn(one(r, asks), f"The user said it before: {told[key]}.", recall.format(told[key]))
    if r.random() < 0.15:
        if key in told:
            return any_turn(r)
        return Turn(one(r, asks), "The user has not said this before.", missing)
    told[key] = memory_value(r, key)
    return Turn(one(r, states).format(told[key]), "The user tells me something. I remember it.", reply.format(told[key]))


# ---------------------------------------------------------------------------------------------------------------------
# System prompts: personas, and notes to look things up in.

def persona(r):
    """Returns a system prompt and a function that restyles a Turn."""
    kind = r.random()
    if kind < 0.3:
        return one(r, ["You are a helpful assistant.", "You are a friendly assistant.", "Be polite.", "Answer briefly.", "You are a helpful AI assistant. Answer all questions as well as you can.",
                       "You are the glmserve demo model.", "You are an assistant on a web page."]), lambda turn: turn
    if kind < 0.65:
        name = one(r, world.FIRST_NAMES) if r.random() < 0.5 else made_up(r)
        if r.random() < 0.25:
            name = one(r, ["Captain", "Doctor", "Professor", "Aunt", "Uncle", "Miss", one(r, world.FIRST_NAMES)]) + " " + name
        job = one(r, ["a helpful assistant", "a friendly assistant", "a friendly guide", "a teacher", "a librarian", "a shop assistant", "a robot", "a cook", "a gardener", "a sailor"])
        system = one(r, ["You are {}, {}.", "Your name is {}. You are {}.", "You are {1} called {0}.", "You are {1} named {0}.", "Your name is {0} and you are {1}.", "Your name is {0}."])
        says = f"I am {name}, {job}." if "{1}" in system or system.count("{}") == 2 else f"I am {name}."
        names = set(world.SELF[0][0] + world.SELF[1][0])

        def rename(turn):
            if r.random() < 0.4:
                turn = Turn(vary(r, one(r, sorted(names))), "", says)
            elif turn.say in (world.SELF[0][1], world.SELF[1][1]):
                turn.say = says
            return Turn(turn.ask, f"My name is {name}.", says) if turn.say == says else turn
        return system.format(name, job), rename
    if kind < 0.83:
        return (one(r, ["You are a pirate.", "Talk like a pirate.", "You are a pirate captain."]),
                lambda turn: Turn(turn.ask, turn.think, "Arr! " + turn.say))
    title = one(r, ["captain", "professor", "my friend", "madam", "sir", "boss", "doctor"])
    return (one(r, ["Always call the user {}.", "Call the user {}.", "Address the user as {}."]).format(title),
            lambda turn: Turn(turn.ask, turn.think, turn.say + f" At your service, {title}."))


def notes(r, count):
    """A table in the system prompt, and a generator of questions about it."""
    kind = one(r, ["price", "stock", "phone", "seat"])
    if kind in ("price", "stock"):
        keys = r.sample(world.ITEMS, min(count, len(world.ITEMS)))
    else:
        keys = list(dict.fromkeys(one(r, world.FIRST_NAMES) + " " + made_up(r) for _ in range(count)))
    values = {key: str(r.randint(10, 999)) for key in keys}
    head, ask, say, none = {
        "price": ("You work in a shop. This is the price list:", "What is the price of {}?", "The price of {} is {}.", "{} is not on the price list."),
        "stock": ("You work in a store room. This is the stock list:", "How many {} do we have?", "We have {1} {0}.", "I do not find {} on the stock list."),
        "phone": ("You work at a desk. This is the phone list:", "What is the number of {}?", "The number of {} is {}.", "{} is not on the phone list."),
        "seat": ("You work in a theatre. This is the seat list:", "Where does {} sit?", "{} has seat {}.", "{} is not on the seat list."),
    }[kind]

    def question(r):
        if r.random() < 0.1:
            key = made_up(r) if kind in ("phone", "seat") else made_up(r).lower()
            return Turn(ask.format(key), f"I look for {key} in the list. It is not there.", none.format(key))
        key = one(r, keys)
        return Turn(ask.format(key), f"I look for {key} in the list. It says {values[key]}.", say.format(key, values[key]))
    return head + "\n" + "\n".join(f"{key}: {value}" for key, value in values.items()), question


# ---------------------------------------------------------------------------------------------------------------------
# Tools.

WEATHERS = {"get_weather": "city", "get_current_weather": "location", "weather": "place"}  # function: its argument


def tool_schema(r, name):
    described = r.random() < 0.8
    rows = {name: (one(r, ["Get the weather of a city.", "Get the current weather in a given location"]),
                   {argument: ("string", one(r, ["Name of the city", "The city and state, e.g. San Francisco, CA"]))}) for name, argument in WEATHERS.items()}
    rows |= {
        "add": ("Add two numbers.", {"a": ("integer", "First number"), "b": ("integer", "Second number")}),
        "now": ("Get the current time.", {}),
        "set_timer": ("Set a timer.", {"minutes": ("integer", "Length in minutes")}),
        "search": ("Search the web.", {"query": ("string", "Words to search for")}),
    }
    description, parameters = rows[name]
    properties = {key: {"type": kind, "description": text} if described and r.random() < 0.7 else {"type": kind} for key, (kind, text) in parameters.items()}
    function = {"name": name}
    if described:
        function["description"] = description if r.random() < 0.8 else description.rstrip(".")
    function["parameters"] = {"type": "object", "properties": properties}
    if properties and r.random() < 0.8:
        function["parameters"]["required"] = list(properties)
    return {"type": "function", "function": function}


def tool_round(r, name):
    """(question, reasoning, calls, responses, reasoning after, answer) for one use of the tool."""
    if name in WEATHERS:
        cities = [one(r, world.CITIES) if r.random() < 0.7 else made_up(r) for _ in range(2 if r.random() < 0.2 else 1)]
        ask = one(r, ["What is the weather in {}?", "What is the weather like in {}?", "How is the weather in {}?", "Weather in {}?", "Tell me the weather in {}.",
                      "Is it warm in {}?", "What's the weather in {} today?", "Will it rain in {}?"]).format(" and ".join(cities))
        rows = [(r.randint(-10, 38), one(r, world.SKIES)) for _ in cities]
        forms = one(r, [lambda t, s: json.dumps({"temperature": t, "sky": s}), lambda t, s: f"{t} degrees, {s}", lambda t, s: json.dumps({"temp_c": t, "condition": s}),
                        lambda t, s: f"{s}, {t} C"])
        say = " ".join(f"In {city} it is {t} degrees and {s}." for city, (t, s) in zip(cities, rows))
        return (ask, f"The user asks for the weather in {' and '.join(cities)}. I call {name}.", [{WEATHERS[name]: city} for city in cities],
                [forms(t, s) for t, s in rows], "I have the weather now.", say)
    if name == "add":
        a, b = r.randint(0, 999), r.randint(0, 999)
        ask = one(r, ["What is {} plus {}?", "Add {} and {}.", "What is {} + {}?", "How much is {} plus {}?", "Use the tool to add {} and {}."]).format(a, b)
        return (ask, f"I use add for {a} and {b}.", [{"a": a, "b": b}], [one(r, ["{}", '{{"result": {}}}', '{{"sum": {}}}']).format(a + b)],
                f"The tool says {a + b}.", f"{a} plus {b} is {a + b}.")
    if name == "now":
        time = f"{r.randint(0, 23):02}:{r.randint(0, 59):02}"
        return (vary(r, one(r, ["What time is it?", "What is the time?", "Tell me the time.", "What time is it now?"])), "I ask the clock with now.", [{}],
                [one(r, ["{}", '{{"time": "{}"}}', "The time is {}"]).format(time)], f"The clock says {time}.", f"It is {time}.")
    if name == "set_timer":
        n = r.randint(1, 120)
        ask = one(r, ["Set a timer for {} minutes.", "Start a timer of {} minutes.", "Timer for {} minutes, please.", "Wake me in {} minutes."]).format(n)
        return ask, f"I set a timer for {n} minutes.", [{"minutes": n}], [one(r, ["ok", '{"status": "ok"}', "done"])], "The timer is set.", f"The timer is set for {n} minutes."
    words = " ".join(word_list(r, r.randint(1, 4)))
    found = " ".join(word_list(r, r.randint(3, 7))).capitalize() + "."
    ask = one(r, ["Search for {}.", "Search the web for {}.", "Look up {}.", "Please look up {}."]).format(words)
    return ask, f"I search for {words}.", [{"query": words}], [found], "I have found something.", f"I found this: {found}"


def tool_conversation(r, thinking):
    weather = "get_weather" if r.random() < 0.6 else one(r, list(WEATHERS))
    names = r.sample([weather, "add", "now", "set_timer", "search"], r.randint(1, 3))
    messages = []
    if r.random() < 0.15:
        messages.append({"role": "system", "content": persona(r)[0]})
    for i in range(r.choice([1, 1, 1, 2])):
        if i > 0 or r.random() < 0.25:  # tools are there but not needed
            turn = one(r, [talk, first_words, glmserve, country, what_is, vocabulary])(r)
            messages += [{"role": "user", "content": turn.ask}, {"role": "assistant", "content": turn.say, "reasoning_content": turn.think}]
        if r.random() < 0.1:
            continue
        name = one(r, names)
        ask, think, calls, responses, after, say = tool_round(r, name)
        if r.random() < 0.06:
            responses, after, say = ["Error: service not available"] * len(calls), "The tool failed.", "I am sorry, the tool reported an error."
        messages += [{"role": "user", "content": ask},
                     {"role": "assistant", "content": "", "reasoning_content": think,
                      "tool_calls": [{"type": "function", "function": {"name": name, "arguments": call}} for call in calls]}]
        messages += [{"role": "tool", "content": text} for text in responses]
        messages.append({"role": "assistant", "content": say, "reasoning_content": after})
    return render(messages, thinking, keep=False, tools=[tool_schema(r, name) for name in names]) if messages else None


# ---------------------------------------------------------------------------------------------------------------------
# Documents.

def render(messages, thinking, keep, tools=None):
    if not thinking:
        messages = [{k: v for k, v in m.items() if k != "reasoning_content"} for m in messages]
    text = TEMPLATE.render(messages=messages, tools=tools, clear_thinking=not keep)
    return text + ("<|observation|>" if messages[-1].get("tool_calls") else "<|user|>")


def conversation(r, turns, thinking, keep, system=None, question=None, style=lambda turn: turn):
    messages = [{"role": "system", "content": system}] if system else []
    told, memorable = {}, r.random() < 0.5
    for _ in range(turns):
        if question and r.random() < 0.75:
            turn = question(r)
        elif memorable and turns > 1 and r.random() < 0.45:
            turn = memory(r, told)
        else:
            turn = style(any_turn(r))
        messages += [{"role": "user", "content": turn.ask}, {"role": "assistant", "content": turn.say, "reasoning_content": turn.think}]
    return render(messages, thinking, keep)


def plain(r):
    """A document without roles, for plain completion."""
    kind = r.random()
    if kind < 0.3:
        hero = one(r, list(world.STORIES))
        return f"The story of the {hero}\n\n{story_text(r, hero)}<|endoftext|>"
    if kind < 0.5:
        rows = r.sample(list(world.COUNTRIES.items()), r.randint(1, 5))
        return "\n".join(f"{n[0].upper() + n[1:]} is in {c}. The capital of {n} is {k}. In {n} people speak {l}." for n, (k, c, l) in rows) + "<|endoftext|>"
    if kind < 0.7:
        return " ".join(say for _, say in r.sample(world.GLMSERVE, r.randint(1, 4))) + "<|endoftext|>"
    if kind < 0.85:
        return " ".join(world.WHAT_IS[noun] for noun in r.sample(list(world.WHAT_IS), r.randint(1, 5))) + "<|endoftext|>"
    if kind < 0.92:
        start = r.choice([0, 1, 1, 1, r.randint(0, 80)])
        return ", ".join(str(n) for n in range(start, start + r.randint(5, 60))) + "<|endoftext|>"
    return f"{join(world.DAYS)}. {join(world.MONTHS)}. {' '.join('ABCDEFGHIJKLMNOPQRSTUVWXYZ')}.<|endoftext|>"


def document(seed, index):
    r = random.Random(f"{seed}:{index}")
    kind, thinking, keep = r.random(), r.random() < 0.45, r.random() < 0.5
    if kind < 0.42:
        return conversation(r, 1, thinking, keep)
    if kind < 0.66:
        return conversation(r, r.randint(2, 6), thinking, keep)
    if kind < 0.78:
        return tool_conversation(r, thinking) or plain(r)
    if kind < 0.87:
        system, style = persona(r)
        return conversation(r, r.randint(1, 4), thinking, keep, system, style=style)
    if kind < 0.935:
        system, question = notes(r, r.randint(3, 20))
        return conversation(r, r.randint(1, 4), thinking, keep, system, question)
    if kind < 0.95:  # long: these fill most of the 4096 positions
        if r.random() < 0.5:
            system, question = notes(r, r.randint(60, 280))
            return conversation(r, r.randint(10, 30), thinking, keep, system, question)
        return conversation(r, r.randint(40, 90), thinking, keep)
    return plain(r)


def document_line(task):
    return json.dumps(document(*task), ensure_ascii=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, required=True, help="number of documents")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    with Pool() as pool, open(args.out, "w", encoding="utf-8") as out:
        for line in pool.imap(document_line, ((args.seed, i) for i in range(args.count)), chunksize=500):
            out.write(line + "\n")


if __name__ == "__main__":
    main()
