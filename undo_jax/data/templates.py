"""Word-problem templates and word lists for the arithmetic tasks.

A template is a format string that ends where the answer follows. Its fields are the numbers {a}
and {b}, in the roles a + b, a - b, a * b and a / b; the people {name} and {other}; {place}; the
nouns {thing} (plural) and {container} (singular, {containers} plural); and nouns that agree with a
number: {thing_a}, {thing_b}, {container_a}, {container_b} and the same for every key of `NOUNS`,
such as {friend_b}. In subtraction a is at least 2 and b is at least 1; elsewhere both may be 1.
"""

from functools import lru_cache
from typing import NamedTuple

TRAIN: dict[str, tuple[str, ...]] = {
    "addition": (
        "{name} has {a} {thing_a} and buys {b} more. How many {thing} does {name} have now?",
        "{name} finds {a} {thing_a} in the morning and {b} in the afternoon. How many {thing} does "
        "{name} find altogether?",
        "A {container} holds {a} {thing_a}. {name} adds {b} more. How many {thing} does the "
        "{container} hold now?",
        "{name} owns {a} {thing_a}, and {other} owns {b}. How many {thing} do the two own "
        "together?",
        "At {place}, {name} counts {a} {thing_a} on the left and {b} on the right. What is the "
        "total count?",
        "{other} gives {name} {b} {thing_b}. Before that, {name} had {a}. How many {thing} does "
        "{name} have after the gift?",
        "{name} packs {a} {thing_a} into one {container} and {b} into another. How many {thing} "
        "does {name} pack in total?",
        "On Monday {name} sells {a} {thing_a} at {place}; on Tuesday, {b}. How many {thing} were "
        "sold over the two days?",
        "{name} keeps {a} {thing_a} in a {container}. {other} drops in {b} of a different color. "
        "How many {thing} are in the {container} now?",
        "{name} needs {a} {thing_a} for one project and {b} for another. How many {thing} does "
        "{name} need for both projects?",
        "{name} brings {a} {thing_a} to {place}, while {other} brings {b}. How many {thing} do "
        "they bring between them?",
        "Last week {name} collected {a} {thing_a}. This week {name} collected {b}. What is the "
        "size of the whole collection?",
        "After giving away {b} {thing_b}, {name} still has {a}. How many {thing} did {name} have "
        "at first?",
        "{name} orders {a} {thing_a} online and picks up {b} at {place}. How many {thing} does "
        "{name} get in all?",
        "A stall near {place} shows {a} {thing_a} on the table and keeps {b} underneath. How many "
        "{thing} does the stall have?",
        "{name} won {a} {thing_a} in the first game and {b} in the second. How many {thing} did "
        "{name} win?",
        "{other} has {b} more {thing_b} than {name}, who has {a}. How many {thing} does {other} "
        "have?",
        "Someone left {a} {thing_a} at {place}, and {name} leaves {b} there too. How many {thing} "
        "are there now?",
        "{name} draws {a} {thing_a} on one page and {b} on the next. How many {thing} has {name} "
        "drawn?",
        "One {container} contains {a} {thing_a} and a second {container} contains {b}. Altogether, "
        "how many {thing} are inside?",
        "{name} lends {a} {thing_a} to {other} and keeps {b} at home. How many {thing} does {name} "
        "own?",
        "It takes {a} {thing_a} to fill the top shelf and {b} to fill the bottom shelf. How many "
        "{thing} fill both shelves?",
        "{name} carried {a} {thing_a} from {place}, then went back for {b} more. How many {thing} "
        "did {name} carry in total?",
        "With {a} {thing_a} from {other} and {b} from a neighbor, how many {thing} does {name} "
        "receive?",
    ),
    "subtraction": (
        "{name} has {a} {thing} and gives {b} to {other}. How many {thing} does {name} have left?",
        "A {container} holds {a} {thing}. {name} takes out {b}. How many {thing} remain in the "
        "{container}?",
        "{name} had {a} {thing} but lost {b} at {place}. How many {thing} does {name} still have?",
        "There were {a} {thing} at {place}. Visitors took {b}. How many {thing} are still there?",
        "{name} wants to collect {a} {thing} and has {b} so far. How many more {thing} does {name} "
        "need?",
        "{name} owns {a} {thing}. {other} owns {b}. How many more {thing} does {name} own than "
        "{other}?",
        "Out of {a} {thing}, {name} sells {b}. How many {thing} are unsold?",
        "{name} bought {a} {thing} and returned {b} to the shop. How many {thing} did {name} keep?",
        "{name} and {other} own {a} {thing} together. {name} owns {b}. How many {thing} does "
        "{other} own?",
        "{name} must carry {a} {thing} to {place}. After moving {b}, how many {thing} are left to "
        "carry?",
        "{name} packed {a} {thing} for a trip and used {b}. How many {thing} were not used?",
        "A stall at {place} opens with {a} {thing}. By noon it has sold {b}. How many {thing} can "
        "it still sell?",
        "{name} had {a} {thing} on the table until {other} borrowed {b}. How many {thing} stayed "
        "on the table?",
        "This year {name} found {a} {thing}; last year {name} found {b}. How many more {thing} "
        "were found this year?",
        "{name} put {a} {thing} in a {container}, and later {b} fell out. How many {thing} stayed "
        "inside?",
        "{name} donates {b} of {a} {thing} to {place}. How many {thing} does {name} keep?",
        "After {name} added {b} {thing_b}, the {container} had {a} in it. How many {thing} were in "
        "the {container} before?",
        "{name} has {a} {thing}. {other} has {b} fewer. How many {thing} does {other} have?",
        "{name} throws away {b} broken {thing_b} from a set of {a}. How many {thing} are in good "
        "shape?",
        "{name} trades {b} of {a} {thing} for a ticket. How many {thing} does {name} hold on to?",
        "A {container} has room for {a} {thing}. {name} has put in {b}. How many more {thing} fit?",
        "{name} began the week with {a} {thing} and used up {b} by Friday. How many {thing} were "
        "left on Friday?",
        "Before lunch {name} had {a} {thing}. During lunch {other} took {b} away. How many {thing} "
        "did {name} have after lunch?",
        "{name} hid {a} {thing} around {place}, and {other} found {b}. How many {thing} are still "
        "hidden?",
    ),
    "multiplication": (
        "{name} has {a} {container_a} with {b} {thing_b} in each. How many {thing} does {name} "
        "have?",
        "{name} buys {a} {pack_a} of {b} {thing_b}. How many {thing} does {name} buy?",
        "Every day for {a} {day_a}, {name} finds {b} {thing_b} at {place}. How many {thing} does "
        "{name} find in all?",
        "{name} arranges {thing} in {a} {row_a} of {b}. How many {thing} are there?",
        "{name} gives {b} {thing_b} to each guest. With {a} {guest_a}, how many {thing} are "
        "needed?",
        "A shelf holds {b} {thing_b}. How many {thing} fit on {a} {shelf_a} like it?",
        "{name} walks to {place} {a} {time_a} and brings back {b} {thing_b} each time. How many "
        "{thing} does {name} bring back?",
        "{name} can sort {b} {thing_b} in a minute. How many {thing} can {name} sort in {a} "
        "{minute_a}?",
        "For a game, {name} forms {a} {team_a} and hands {b} {thing_b} to every team. How many "
        "{thing} does {name} hand out?",
        "A {container} with {b} {thing_b} arrives daily. How many {thing} arrive over {a} {day_a}?",
        "{other} has {b} {thing_b}, and {name} has {a} times as many. How many {thing} does "
        "{name} have?",
        "{name} sets up {a} {table_a} at {place} and puts {b} {thing_b} on each. How many {thing} "
        "does {name} put out?",
        "{name} decorates {a} {page_a} with {b} {thing_b} per page. How many {thing} does {name} "
        "use?",
        "A machine packs {b} {thing_b} per {container}. How many {thing} go into {a} "
        "{container_a}?",
        "{name} earns {b} {thing_b} for each finished task. After {a} {task_a}, how many {thing} "
        "has {name} earned?",
        "{name} has {a} {pocket_a}, and every pocket has {b} {thing_b} in it. How many {thing} is "
        "{name} carrying?",
        "Each visitor to {place} receives {b} {thing_b}. How many {thing} go to {a} {visitor_a}?",
        "{name} copied a pattern of {b} {thing_b} {a} {time_a}. How many {thing} did that take?",
        "{name} stacks {thing} in {a} {layer_a}. A layer has {b} {thing_b}. How many {thing} are "
        "in the stack?",
        "{name} plans {a} {party_a} and needs {b} {thing_b} for each party. How many {thing} "
        "should {name} get?",
        "{name} swaps {b} {thing_b} for one ticket. How many {thing} pay for {a} {ticket_a}?",
        "{name} passes {a} {bench_a} on the way to {place} and leaves {b} {thing_b} on each. How "
        "many {thing} does {name} leave?",
    ),
    "division": (
        "{name} shares {a} {thing_a} equally among {b} {friend_b}. How many {thing} does each "
        "friend get?",
        "{name} packs {a} {thing_a} into {b} {container_b}, the same number in each. How many "
        "{thing} go in each {container}?",
        "A {container} holds {b} {thing_b}. How many {containers} does {name} need for {a} "
        "{thing_a}?",
        "{name} puts {a} {thing_a} in {b} equal {row_b}. How many {thing} are in each row?",
        "{name} uses {b} {thing_b} a day. For how many days does {name} have enough with {a} "
        "{thing_a}?",
        "{name} splits {a} {thing_a} into groups of {b}. How many groups are there?",
        "At {place}, {name} spreads {a} {thing_a} evenly over {b} {table_b}. How many {thing} does "
        "each table get?",
        "It takes {b} {thing_b} to make one kit. How many kits can {name} make from {a} {thing_a}?",
        "{name} collected {a} {thing_a} in {b} {day_b}, the same number every day. How many "
        "{thing} did {name} collect per day?",
        "{name} has {a} {thing_a} to hand out. Each child receives {b}. How many children can "
        "{name} serve?",
        "{name} carries {b} {thing_b} per trip to {place}. How many trips does {name} make to move "
        "{a} {thing_a}?",
        "A set of {a} {thing_a} is dealt out to {b} {player_b}. How many {thing} does every player "
        "hold?",
        "{name} has {a} {thing_a}, which is {b} times as many as {other} has. How many {thing} "
        "does {other} have?",
        "{name} fills {b} {shelf_b} with {a} {thing_a} in total, spread evenly. How many {thing} "
        "are on one shelf?",
        "For every ticket {name} pays {b} {thing_b}. How many tickets can {name} buy with {a}?",
        "{name} sorts {a} {thing_a} into {b} {pile_b} of equal size. How many {thing} are in one "
        "pile?",
        "{name} ties {a} {thing_a} in bunches of {b}. How many bunches does {name} get?",
        "{name} gives away {a} {thing_a} over {b} {week_b}, always the same amount. How many "
        "{thing} is that per week?",
        "Each tray has space for {b} {thing_b}. How many trays does {name} fill with {a} "
        "{thing_a}?",
        "{name} buys {a} {thing_a} for {b} {class_b} at the school. How many {thing} does one "
        "class receive if all get the same?",
        "{name} lines up {a} {thing_a} with {b} in every line. How many lines does {name} form?",
        "{other} pays {name} {b} {thing_b} for each chore. {name} now has {a} from this work. How "
        "many chores did {name} do?",
        "{name} must leave {a} {thing_a} at {b} {stop_b} along the way to {place}, evenly. How "
        "many {thing} go to each stop?",
        "{name} empties a {container} of {a} {thing_a} onto {b} {plate_b}, with no plate getting "
        "more than another. How many {thing} are on a plate?",
    ),
}

HELD_OUT: dict[str, tuple[str, ...]] = {
    "addition": (
        "{name} starts the day with {a} {thing_a} and earns {b} by evening. Counting all of the "
        "{thing}, {name} ends the day with",
        "Yesterday a {container} at {place} had {a} {thing_a} in it; {b} came in overnight. The "
        "{container} now has this many {thing}:",
        "{name} and {other} make one heap of {thing}. {name} contributes {a} and {other} "
        "contributes {b}. How large is the heap?",
        "First {a} {thing_a}, then {b}: that is what {name} was handed. How many is that?",
        "A parcel for {name} has {a} {thing_a} inside, and a parcel for {other} has {b}. How many "
        "{thing} were posted?",
        "{name} spots {a} {thing_a} on the way to {place} and {b} on the way home. How many "
        "{thing} does {name} spot during the outing?",
        "If {other} lays {b} {thing_b} next to the {a} that {name} has laid out, how many {thing} "
        "lie there?",
        "Having saved {a} {thing_a} in spring and {b} in summer, {name} has saved a total of",
        "{name} counted {a} {thing_a}. {other} pointed out {b} that {name} had missed. What should "
        "the corrected count be?",
        "A kit includes {a} {thing_a}, and the bonus pack includes {b} extra. How many {thing} "
        "come with the kit and the pack?",
        "Two classes visit {place}. One class gathers {a} {thing_a}, the other {b}. How many "
        "{thing} do the classes gather?",
        "Stack {a} {thing_a} beside {b} others, and the number of {thing} in front of {name} is",
    ),
    "subtraction": (
        "{other} asks for {b} of the {a} {thing} that {name} owns, and {name} agrees. The number "
        "of {thing} that {name} is left with is",
        "The label on a {container} promises {a} {thing}, yet {b} went missing. How many {thing} "
        "are really inside?",
        "{name} needs to deliver {a} {thing}. The first trip to {place} takes care of {b}. How "
        "many {thing} wait for the next trip?",
        "Take {b} away from a heap of {a} {thing}. How many does {name} see now?",
        "When {name} left {place}, only {b} of the original {a} {thing} had been claimed. How many "
        "{thing} had nobody claimed?",
        "Between them {name} and {other} sorted {a} {thing}. Since {name} sorted {b}, how many "
        "{thing} did {other} sort?",
        "The wind at {place} blew away {b} of the {a} {thing} that {name} had laid out. How many "
        "{thing} did the wind spare?",
        "Compare two piles: one of {a} {thing}, the other of {b}. The larger pile is ahead by",
        "{name} ordered {a} {thing}, of which {b} arrived early. How many {thing} are on the way?",
        "{name} has {a} {thing}, old and new. The number of old ones is {b}. How many {thing} are "
        "new?",
        "By closing time, the display of {a} {thing} at {place} had shrunk by {b}. How many "
        "{thing} did the display have then?",
        "{name} promised {other} {a} {thing} and has handed over {b}. How many {thing} does {name} "
        "still owe?",
    ),
    "multiplication": (
        "If one {container} can carry {b} {thing_b}, then the number of {thing} that {a} "
        "{container_a} can carry is",
        "{name} repeats the same errand {a} {time_a}: fetch {b} {thing_b} from {place}. How many "
        "{thing} are fetched?",
        "{other} lays out a grid of {thing} with {a} {row_a} and {b} {column_b}. How many {thing} "
        "make up the grid?",
        "It takes {b} {thing_b} to build one model. How many {thing} does {name} need to build {a} "
        "{model_a}?",
        "With {a} {helper_a} carrying {b} {thing_b} apiece, how many {thing} reach {place}?",
        "Every {container} in the cupboard has the same content, {b} {thing_b}. {name} empties {a} "
        "{container_a}. How many {thing} come out?",
        "A hobby club meets for {a} {week_a} and goes through {b} {thing_b} a week. How many "
        "{thing} does the club go through?",
        "{name} multiplies a supply of {b} {thing_b} by {a}. How big is the new supply?",
        "Suppose a child at {place} is promised {b} {thing_b}. For {a} {child_a}, the total to "
        "prepare is",
        "{name} ties {b} {thing_b} to a string. How many {thing} are tied to {a} {string_a} made "
        "this way?",
        "Over {a} {month_a}, {other} sent {name} {b} {thing_b} per month. How many {thing} came by "
        "mail?",
        "{name} loads {a} {cart_a} in the same way, {b} {thing_b} to a cart. How many {thing} are "
        "loaded?",
    ),
    "division": (
        "If {b} {helper_b} must carry {a} {thing_a} to {place} in equal loads, the size of one "
        "load is",
        "{name} has an order for {a} {thing_a} and ships {b} per parcel. How many parcels are "
        "sent?",
        "Every {container} takes exactly {b} {thing_b}. To store {a}, {name} needs this many "
        "{containers}:",
        "A total of {a} {thing_a} came in over {b} {month_b} at a steady rate. How many {thing} "
        "came each month?",
        "With {a} {thing_a} on hand and {b} needed per model, how many models can {name} build?",
        "{other} divides a supply of {a} {thing_a} by {b}. How big is one part?",
        "How many times can {name} take {b} {thing_b} out of a {container} of {a} before it is "
        "empty?",
        "{name} lays {a} {thing_a} in a grid with {b} {column_b}. How many rows does the grid "
        "have?",
        "A treasure of {a} {thing_a} is split fairly by a crew of {b}. How many {thing} make one "
        "share?",
        "{name} threads {b} {thing_b} on a string and then starts the next string. How many "
        "strings does {name} fill with {a} {thing_a}?",
        "{name} leaves {b} {thing_b} on each bench at {place} and sets out {a} in total. How many "
        "benches does {name} visit?",
        "{name} needs {b} {turn_b} of equal size to move {a} {thing_a}. How many {thing} does "
        "{name} move per turn?",
    ),
}

NOUNS = {
    "bench": "benches",
    "cart": "carts",
    "child": "children",
    "class": "classes",
    "column": "columns",
    "day": "days",
    "friend": "friends",
    "guest": "guests",
    "helper": "helpers",
    "layer": "layers",
    "minute": "minutes",
    "model": "models",
    "month": "months",
    "pack": "packs",
    "page": "pages",
    "party": "parties",
    "pile": "piles",
    "plate": "plates",
    "player": "players",
    "pocket": "pockets",
    "row": "rows",
    "shelf": "shelves",
    "stop": "stops",
    "string": "strings",
    "table": "tables",
    "task": "tasks",
    "team": "teams",
    "ticket": "tickets",
    "time": "times",
    "turn": "turns",
    "visitor": "visitors",
    "week": "weeks",
}

NAMES = tuple(
    """
    Ada Aisha Alma Amir Anika Arjun Aylin Bela Bruno Camila Carlos Chen Clara Dalia Daniel Dimitri
    Elena Elif Emil Esther Farid Felix Freya Gita Grace Hana Hugo Ida Imran Ines Ivan Jamal Jonas
    Jun Kai Keiko Kofi Lara Leo Lina Luca Maja Malik Mina Nadia Niko Noor Olga Omar Pablo Petra
    Priya Rafael Rosa Samir Selma Tariq Tessa Uma Viktor Wanda Yusuf Zara Zoe
    """.split()
)

THINGS = (
    ("acorn", "acorns"),
    ("apple", "apples"),
    ("badge", "badges"),
    ("ball", "balls"),
    ("balloon", "balloons"),
    ("battery", "batteries"),
    ("bead", "beads"),
    ("bell", "bells"),
    ("biscuit", "biscuits"),
    ("bolt", "bolts"),
    ("bookmark", "bookmarks"),
    ("bracelet", "bracelets"),
    ("brush", "brushes"),
    ("button", "buttons"),
    ("candle", "candles"),
    ("card", "cards"),
    ("carrot", "carrots"),
    ("cherry", "cherries"),
    ("chestnut", "chestnuts"),
    ("clip", "clips"),
    ("coin", "coins"),
    ("cookie", "cookies"),
    ("cork", "corks"),
    ("crayon", "crayons"),
    ("cup", "cups"),
    ("egg", "eggs"),
    ("envelope", "envelopes"),
    ("eraser", "erasers"),
    ("feather", "feathers"),
    ("flag", "flags"),
    ("gem", "gems"),
    ("key", "keys"),
    ("lamp", "lamps"),
    ("leaf", "leaves"),
    ("lemon", "lemons"),
    ("magnet", "magnets"),
    ("marble", "marbles"),
    ("medal", "medals"),
    ("muffin", "muffins"),
    ("needle", "needles"),
    ("notebook", "notebooks"),
    ("onion", "onions"),
    ("orange", "oranges"),
    ("peach", "peaches"),
    ("pear", "pears"),
    ("pebble", "pebbles"),
    ("pencil", "pencils"),
    ("photo", "photos"),
    ("plum", "plums"),
    ("postcard", "postcards"),
    ("potato", "potatoes"),
    ("ribbon", "ribbons"),
    ("ring", "rings"),
    ("ruler", "rulers"),
    ("screw", "screws"),
    ("shell", "shells"),
    ("spoon", "spoons"),
    ("stamp", "stamps"),
    ("sticker", "stickers"),
    ("tile", "tiles"),
    ("tomato", "tomatoes"),
    ("toy", "toys"),
    ("tulip", "tulips"),
    ("whistle", "whistles"),
)

CONTAINERS = (
    ("bag", "bags"),
    ("basket", "baskets"),
    ("bin", "bins"),
    ("box", "boxes"),
    ("bucket", "buckets"),
    ("carton", "cartons"),
    ("case", "cases"),
    ("chest", "chests"),
    ("crate", "crates"),
    ("drawer", "drawers"),
    ("jar", "jars"),
    ("sack", "sacks"),
    ("tin", "tins"),
)

PLACES = (
    "the beach",
    "the campsite",
    "the community hall",
    "the fair",
    "the farm",
    "the harbor",
    "the library",
    "the market",
    "the museum",
    "the park",
    "the playground",
    "the station",
    "the workshop",
    "the zoo",
)


class Words(NamedTuple):
    """The words of one problem; `thing` and `container` are (singular, plural)."""

    name: str
    other: str
    thing: tuple[str, str]
    container: tuple[str, str]
    place: str


def fill(template: str, a: int, b: int, words: Words) -> str:
    """The template's text with every field filled in."""
    return _agreeing(template, a != 1, b != 1).format_map(
        {
            "a": a,
            "b": b,
            "name": words.name,
            "other": words.other,
            "place": words.place,
            "thing": words.thing[1],
            "thing_a": words.thing[a != 1],
            "thing_b": words.thing[b != 1],
            "container": words.container[0],
            "containers": words.container[1],
            "container_a": words.container[a != 1],
            "container_b": words.container[b != 1],
        }
    )


@lru_cache(maxsize=1024)
def _agreeing(template: str, plural_a: bool, plural_b: bool) -> str:
    """The template with the nouns of `NOUNS` filled in."""
    for pair in NOUNS.items():
        template = template.replace(f"{{{pair[0]}_a}}", pair[plural_a])
        template = template.replace(f"{{{pair[0]}_b}}", pair[plural_b])
    return template
