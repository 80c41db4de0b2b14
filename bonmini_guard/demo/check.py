"""The desk's strict check: every fact of the note, no other, said in plain words. No model takes part.

First the facts are looked for, and anything that the note does not give. Then each fact is replaced by its kind ("<date>"), and
what is left must be a greeting, one statement of the situation and perhaps a courtesy, in the forms listed here. Forms that are
not listed fail: the check would rather refuse a good message than pass a bad one.
"""

from __future__ import annotations

import re

from bonmini_guard.demo.desk import CITIES, COURIERS, ITEMS, MONTHS, NAMES, Note

_MONTH = "|".join(MONTHS)
_DATE = re.compile(
    rf"\b(?:the )?(\d{{1,2}})(?:st|nd|rd|th)?(?: of)? ({_MONTH})\b|\b({_MONTH}) (?:the )?(\d{{1,2}})(?:st|nd|rd|th)?\b(?! \d)", re.I
)
_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
_AMOUNT = re.compile(r"\$ ?(\d+)(?:\.00)?(?![\d.]*\d)")
#: What a message may not hold once its own facts are taken out: numbers, other times, couriers, places, names and things.
_FOREIGN = re.compile(
    rf"\d|\$|\b(?:{'|'.join((*NAMES, *CITIES, *COURIERS, 'Eva', 'Oslo', 'PostNord', 'Amazon', 'USPS'))})\b"
    rf"|(?i:\b(?:{'|'.join((*ITEMS, 'umbrella', 'today', 'tomorrow', 'yesterday', 'tonight', 'next week', 'next month'))})s?\b)"
    rf"|(?i:\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b)|\b(?:{'|'.join(month for month in MONTHS if month != 'May')})\b"
)


def verdict(note: Note, text: str, ended: bool = True) -> str | None:
    """Why a message is not acceptable; None if it is.

    Args:
        note: the facts.
        text: the message.
        ended: whether it ended by itself, and was not cut at the limit of tokens.
    """
    text = " ".join(text.strip().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split(" "))
    if not ended:
        return "not finished"
    if not text or "\n" in text:
        return "not one short message"
    try:
        said = _words(note, _amount(note, _date(note, _items(note, text))))
    except _WrongFactError as wrong:
        return str(wrong)
    if found := _FOREIGN.search(re.sub(r"<\w+>", " ", said)):
        return f'a fact nobody gave: "{found[0]}"'
    return _plain(note, said)


class _WrongFactError(Exception):
    """A fact of the note is not said, or another one is."""


# Each gives the text with its facts replaced by their kind.


def _items(note: Note, text: str) -> str:
    for count, item in note.items:
        text, counted = re.subn(rf"\b(?:{count}|{_NUMBERS[count - 2]}) {item}s\b", "<items>", text, flags=re.I)
        if not counted:
            raise _WrongFactError(f"wrong count of {item}s" if re.search(rf"{item}s?\b", text, re.I) else f"no {item}s")
    both = "<items> and (?:your |the )?<items>" if len(note.items) > 1 else "<items>"
    return re.sub(both, "<items>", text)


def _date(note: Note, text: str) -> str:
    given = note.facts.get("date")
    found = {f"{int(match[1] or match[4])} {(match[2] or match[3]).capitalize()}" for match in _DATE.finditer(text)}
    if found != ({given} if given else set()):
        raise _WrongFactError("a date nobody gave" if given is None else "wrong date" if found else "no date")
    return _DATE.sub("<date>", text)


def _amount(note: Note, text: str) -> str:
    if "amount" not in note.facts:
        return text
    found = {f"${match[1]}" for match in _AMOUNT.finditer(text)}
    if found != {note.facts["amount"]}:
        raise _WrongFactError("wrong amount" if found else "no amount")
    return _AMOUNT.sub("<amount>", text)


def _words(note: Note, text: str) -> str:
    for kind, fact in (("name", note.name), *((kind, note.facts.get(kind)) for kind in ("courier", "shop"))):
        if fact is not None:
            text, said = re.subn(rf"\b{fact}\b", f"<{kind}>", text)
            if not said:
                raise _WrongFactError(f"no {kind}")
    return text


# Forms, of a text in small letters without commas. A space in them stands for one space.
_NOW = "(?:now |currently |already |all |still |just |unfortunately |temporarily |slightly )*"
_BOUGHT = "(?: (?:that )?you(?:'ve| have)? (?:ordered|purchased|bought)| (?:from|in) your order)?"
_ITEMS = f"(?:(?:all )?(?:of )?(?:your|the) )?<items>{_BOUGHT}"
_THEN = "(?: and| but| so)?(?: (?:they|it|we expect them to|which))?"
_WILL = f"(?:will|should|'ll|are {_NOW}(?:expected|scheduled|due|set) to|is {_NOW}(?:expected|scheduled|due|set) to)"
_TO_YOU = "(?: (?:to|with|at) (?:you|your home|your address|your door(?:step)?))?"
_ARRIVE = f"(?:arrive|be delivered|be there|come|reach you|be with you|get to you){_TO_YOU}"
_ON = "(?:on|by) (?:the new date of )?<date>"
_ARE = f"(?:are|is|have been|were|will be) {_NOW}"
_WITH = "(?:with|by|via|from|through) (?:the )?<courier>"
_ON_WAY = "on (?:their|the|its) way|in transit|out for delivery"
_GOING = f"(?:{_ON_WAY}|shipped|dispatched|sent|coming|coming in|being (?:shipped|delivered|sent))"
_LATE = f"{_ARE}(?:delayed|late|running late|postponed|rescheduled)"
_OUT = f"{_ARE}(?:sold out|out of stock|out-of-stock|not in stock|unavailable|not available|no longer available)"
_BACK = "(?:be )?(?:back|back in stock|in stock|available|restocked|back in stock and available)(?: again)?"
_AT = "(?:in|at|from) (?:our|the) (?:shop|store) in <shop>|(?:in|at|from) (?:our |the )?<shop>(?: (?:shop|store|branch|location))?"
_FROM = "(?:from|on|starting(?: from| on)?|as of) <date>(?: onwards?)?"
_PICK = "(?:pick-up|pickup|pick up|collection)"
_REFUND = "(?:a |the |your )?(?:full |total )?refund of <amount>"
_STATEMENTS = {
    "arrival": (
        rf"{_ITEMS} {_ARE}{_GOING}"
        rf"(?: to you)?(?: {_WITH})?{_THEN}(?: {_WILL} (?:now )?{_ARRIVE}| arrive| arriving)?(?: {_WITH})? {_ON}(?: {_WITH})?",
        rf"{_ITEMS} {_WILL} (?:now )?{_ARRIVE}(?: {_WITH})? {_ON}(?: {_WITH})?",
        rf"{_ITEMS} are {_NOW}arriving(?: {_WITH})? {_ON}(?: {_WITH})?",
    ),
    "delay": (
        rf"{_ITEMS} {_LATE}{_THEN} (?:now )?{_WILL} (?:now |only )?(?:{_ARRIVE}|be available) {_ON}",
        rf"{_ITEMS} {_LATE}{_THEN} (?:are )?(?:now )?(?:arriving|expected|due) {_ON}",
        rf"{_ITEMS} {_LATE} (?:until|till|to) <date>",
        rf"{_ITEMS} {_LATE}(?: and)? (?:the|their|your) new (?:delivery |arrival )?date is <date>",
        rf"(?:the )?(?:delivery|arrival) of {_ITEMS} (?:is|has been) {_NOW}(?:delayed|postponed|rescheduled|moved)"
        r" (?:until|till|to) <date>",
    ),
    "refund": (
        rf"we(?:'ve| have)? {_NOW}(?:refunded|returned|sent back|paid back)(?: to)?(?: you)?"
        rf" (?:a total of |the full )?<amount>(?: to you)? for (?:the purchase of )?{_ITEMS}",
        rf"we(?:'ve| have)? {_NOW}(?:refunded|paid back) {_ITEMS} (?:for|with) <amount>",
        rf"we(?:'ve| have|'re| are)? {_NOW}(?:issued|processed|sent|sending|made|issuing|processing|have)?(?: you)?"
        rf" {_REFUND} for {_ITEMS}",
        rf"you (?:have been|were) {_NOW}refunded <amount> for {_ITEMS}",
        rf"{_REFUND} for {_ITEMS} (?:has been|was) {_NOW}(?:issued|processed|sent|made|paid)(?: to you)?",
    ),
    "stock": (
        rf"{_ITEMS} {_OUT}{_THEN} {_WILL} (?:now )?{_BACK} {_ON}",
        rf"{_ITEMS} {_OUT} until <date>",
        rf"{_ITEMS} {_OUT} (?:and|but) (?:are |is )?(?:expected )?{_BACK} {_ON}",
    ),
    "pickup": (
        rf"{_ITEMS} {_ARE}(?:ready|available)(?: (?:for {_PICK}|to (?:be )?(?:picked up|collected|collect|pick up)))"
        rf"(?: (?:{_AT}) {_FROM}| {_FROM} (?:{_AT}))",
        rf"(?:{_FROM} )?you can {_NOW}(?:pick up|collect) {_ITEMS}(?: (?:{_AT}))?(?: {_FROM})?(?: (?:{_AT}))?",
        rf"{_ITEMS} can be (?:picked up|collected)(?: (?:{_AT}) {_FROM}| {_FROM} (?:{_AT}))",
        rf"{_ITEMS} {_ARE}(?:ready|available) (?:{_AT}) (?:for {_PICK}|to (?:collect|pick up)) {_FROM}",
    ),
}
_DAY = "(?:the|its|their|a|an|your) (?:(?:new|exact|arrival|delivery|return|restock) ){0,3}(?:date|day)"
_KNOWN = "(?:known|confirmed|set|available|clear|certain|decided)"
_NOT_KNOWN = (
    rf"{_DAY} (?:is|has) {_NOW}(?:not (?:yet )?(?:been )?{_KNOWN}(?: yet)?|unknown|to be confirmed)",
    rf"(?:it is|it's) (?:not (?:yet )?{_KNOWN}|unknown) when(?: [a-z']+){{1,6}}",
    rf"we (?:do not|don't) (?:yet )?know (?:{_DAY}|when(?: [a-z']+){{1,6}})(?: yet)?",
    rf"(?:(?:they|it) )?{_WILL} (?:{_ARRIVE}|{_BACK}) (?:on|at) an? (?:(?:as yet )?unknown|not yet known) date",
)
#: What is left of each situation's statement where the date is not known.
_UNDATED = {
    "arrival": rf"{_ITEMS} {_ARE}(?:on (?:their|the|its) way|shipped|dispatched|sent|coming|in transit)(?: to you)? {_WITH}",
    "delay": rf"{_ITEMS} {_LATE}",
    "stock": rf"{_ITEMS} {_OUT}",
    "pickup": rf"{_ITEMS} {_WILL} be (?:ready|available)(?: for {_PICK}) (?:{_AT})",
}
_SALUTE = "(?:hello|hi|hey|dear|good (?:morning|afternoon|evening|day)|sorry|thank you|thanks)"
_GREETING = rf"(?:{_SALUTE} )?<name>(?: {_SALUTE})?"
_OPENING = (
    r"(?:(?:we are|we're|i am|i'm) (?:happy|glad|pleased|sorry) to (?:inform you|let you know|tell you)(?: that)? "
    r"|(?:we|i) (?:just )?(?:want|wanted|would like|regret)(?: to)? (?:to )?(?:inform you|let you know|tell you)(?: that)? "
    r"|(?:just )?to let you know(?: that)? |please note(?: that)? "
    r"|(?:we are|we're|i am|i'm) sorry(?: but| that)? |unfortunately |good news )?"
)
_COURTESY = (
    r"(?:we(?: sincerely)? |i(?: sincerely)? )?(?:apologi[sz]e|(?:(?:we are|we're|i am|i'm) )?(?:very |so |really )?sorry) "
    r"for (?:the|any|this) (?:delay|inconvenience|wait)(?: (?:this|it) (?:may|might) (?:cause|have caused)(?: you)?| caused)?"
    r"|(?:thank you|thanks)(?: (?:so|very) much)?(?: for (?:your (?:order|patience|purchase|understanding)|shopping with us))?"
    r"|(?:we|i) hope (?:this message finds you|you're(?: doing)?|you are(?: doing)?|all is) well"
    r"|(?:we|i) hope (?:you enjoy (?:them|your <items>)|you(?:'re| are) (?:having|enjoying) a (?:great|nice|good) day)"
    r"|please let (?:us|me) know if you have any (?:other |further )?questions|have a (?:great|nice|good|lovely) day"
)


def _plain(note: Note, said: str) -> str | None:
    text = re.sub(r"[,;:]| -+ ", " ", said.lower())
    # "They will arrive on <date>." belongs to the sentence before it.
    text = re.sub(r"[.!?]+ +((?:they|it|the new|the exact|the date|their|we (?:do not|don't)|we expect) )", r" and \1", text)
    sentences = [" ".join(part.split()) for part in re.split(r"[.!?]+", text) if part.strip()]
    stated = [sentence for sentence in sentences if not re.fullmatch(rf"{_GREETING}|(?:{_GREETING} )?(?:{_COURTESY})", sentence)]
    if len(stated) != 1 or len(said.split()) > 40:
        return "says something else" if stated else "does not say what happened"
    before = rf"(?:{_GREETING} )?(?:(?:{_COURTESY}) (?:but |and )?)?{_OPENING}"
    after = rf"(?: (?:{_GREETING}|(?:and )?(?:{_COURTESY})))?"
    statement = f"(?:{'|'.join(_STATEMENTS[note.situation])})"
    if not note.dated:
        statement = rf"{_UNDATED[note.situation]}(?: and| but)?(?: and| but)? (?:{'|'.join(_NOT_KNOWN)})"
    if re.fullmatch(before + statement + after, stated[0]):
        return None
    if not note.dated and not re.search("|".join(_NOT_KNOWN), stated[0]):
        return "does not say that the date is not known"
    return "says something else"
