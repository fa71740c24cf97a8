"""How people cook in the kitchen world: a stochastic grammar of actions in which the order of the past matters.

A person cooks one recipe after the other. A recipe is a partly ordered set of sub-goals (gather, rinse, chop, fill,
dress, mix, serve), a sub-goal a short chain of steps, a step an action (verb, noun) at a place. What comes next depends
on more than the last action, on purpose:
  - salad and soup are made of the same actions: washing comes before cutting in one, after it in the other, and tells
    whether the pieces go to the bowl or to the pan; oil and stirring change places in the same way;
  - what is fetched first is washed, cut and put away first (by some people last): after 'take knife' the order of
    fetching decides;
  - 'put tomato' ends the fetching of a tomato or the filling of a vessel, which the action before it tells.
People differ in habits: one ingredient at a time or all together, the order they prefer, what they cook, how tidy they
are. Random choices are made as late as possible (`options`), so that the exact distribution of the next action given
the state, and given all that was seen, is at hand: it bounds every predictor (`dataset.ceiling`).

Our choice throughout; the phenomena are those of spec 6 (gaps, overlaps, long tail, unseen people).
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

INGREDIENTS = ('tomato', 'cucumber', 'cheese', 'bread')
TOOLS = ('knife', 'spoon')
VERBS = ('take', 'put', 'open', 'close', 'wash', 'cut', 'pour', 'stir')
NOUNS = (*TOOLS, *INGREDIENTS, 'bottle', 'bowl', 'pan', 'fridge', 'drawer', 'tap', 'board')
_NOUNS_OF = {
  'take': (*TOOLS, *INGREDIENTS, 'bottle', 'bowl', 'pan'),
  'put': (*TOOLS, *INGREDIENTS, 'bottle', 'bowl', 'pan'),
  'open': ('fridge', 'drawer', 'tap', 'bottle'),
  'close': ('fridge', 'drawer', 'tap', 'bottle'),
  'wash': ('tomato', 'cucumber', 'knife', 'bowl', 'pan', 'board'),
  'cut': INGREDIENTS,
  'pour': ('bottle', 'pan'),
  'stir': ('bowl', 'pan'),
}
ACTIONS = tuple(f'{verb} {noun}' for verb in VERBS for noun in _NOUNS_OF[verb])
"""The 40 actions, 'verb noun'; their index is the class."""

_HOMES = {'bottle': 'shelf', 'bowl': 'counter', 'pan': 'stove', 'knife': 'drawer', 'spoon': 'drawer'}
_WASHABLE = ('tomato', 'cucumber')


class Step(NamedTuple):
  """One action and where it ends: `at` is the place of a 'put' or the vessel of a 'pour', '' elsewhere."""

  verb: str
  noun: str
  at: str = ''

  @property
  def action(self) -> str:
    """'verb noun', one of ACTIONS."""
    return f'{self.verb} {self.noun}'


@dataclasses.dataclass(frozen=True)
class World:
  """What is where: the symbolic state of the kitchen, which the painter shows.

  Attributes:
    places: movable object -> 'fridge' | 'board' | 'counter' | 'drawer' | 'shelf' | 'stove' | 'bowl' | 'pan' | 'hand'.
    opened: which of fridge, drawer, tap and bottle stand open.
    chopped: the ingredients that are in pieces.
    filled: vessel -> what lies in it, ingredients and 'oil', in the order of arrival.
  """

  places: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: {**dict.fromkeys(INGREDIENTS, 'fridge'), **_HOMES}
  )
  opened: frozenset[str] = frozenset()
  chopped: frozenset[str] = frozenset()
  filled: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: {'bowl': (), 'pan': ()})

  @property
  def held(self) -> str:
    """The object in the working hand, '' for none."""
    return next((noun for noun, place in self.places.items() if place == 'hand'), '')

  def after(self, step: Step) -> World:
    """The world once `step` is done."""
    verb, noun, at = step
    change = functools.partial(dataclasses.replace, self)
    if verb == 'open':
      return change(opened=self.opened | {noun})
    if verb == 'close':
      return change(opened=self.opened - {noun})
    if verb == 'cut':
      return change(chopped=self.chopped | {noun})
    if verb == 'take':
      return change(places={**self.places, noun: 'hand'})
    if verb == 'pour':
      poured = ('oil',) if noun == 'bottle' else self.filled[noun]
      filled = {**self.filled, at: (*self.filled[at], *poured)}
      return change(filled=filled if noun == 'bottle' else {**filled, noun: ()})
    if verb == 'put':
      return self._put(noun, at)
    return self

  def _put(self, noun: str, at: str) -> World:
    """`noun` at its new place; an ingredient goes into a vessel, a vessel that was taken away comes back empty."""
    places, filled, chopped = {**self.places, noun: at}, dict(self.filled), self.chopped
    if at in filled:
      filled[at] = (*filled[at], noun)
    if noun in filled:
      eaten = set(filled[noun])
      filled[noun], chopped = (), chopped - eaten
      places.update((food, 'fridge') for food in eaten & set(INGREDIENTS))
    return World(places, self.opened, chopped, filled)


@dataclasses.dataclass(frozen=True)
class Habits:
  """How one person works; probabilities unless said otherwise.

  Attributes:
    recipes: weight of each of RECIPES.
    liking: weight with which each of INGREDIENTS is chosen as the next one to fetch.
    together: fetch all ingredients, then wash all, then cut all, rather than one after the other.
    queue: treat the ingredients in the order in which they were fetched, rather than in the reverse order.
    tidy: close the drawer or the bottle at once.
    early: lay out the tools before fetching anything.
  """

  recipes: tuple[float, ...]
  liking: tuple[float, ...]
  together: float
  queue: float
  tidy: float
  early: float


def habits(rng: np.random.Generator) -> Habits:
  """Draws a person's habits: mostly one way, rarely the other, as people are."""

  def either(low: float, high: float) -> float:
    return low if rng.random() < 0.5 else high

  return Habits(
    recipes=tuple(rng.dirichlet(np.full(len(RECIPES), 4.0)).tolist()),
    liking=tuple(rng.permutation([1.0, 4.0, 12.0, 30.0]).tolist()),
    together=either(0.1, 0.9),
    queue=0.05 if rng.random() < 0.3 else 0.95,
    tidy=either(0.1, 0.9),
    early=either(0.05, 0.5),
  )


class Rule(NamedTuple):
  """What is not decided yet: `expand(*arguments, world, habits)` gives the ways to go on, [(probability, items)].

  A plain value, so that two states with the same agenda are equal.
  """

  expand: Callable[..., list[tuple[float, Items]]]
  arguments: tuple = ()


Items = tuple['Step | Rule', ...]
Ways = list[tuple[float, Items]]


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A dish: what it needs and in which order.

  Attributes:
    name: of the dish.
    always: its ingredients.
    maybe: one more, in every other case.
    first: sub-goals before any ingredient is fetched.
    treat: what is done to the ingredients, in this order.
    vessel: where the pieces go.
    last: sub-goals once the vessel is filled.
  """

  name: str
  always: tuple[str, ...]
  maybe: str
  first: tuple[str, ...]
  treat: tuple[str, ...]
  vessel: str
  last: tuple[str, ...]


RECIPES = (
  Recipe('salad', ('tomato', 'cucumber'), 'cheese', (), ('rinse', 'chop'), 'bowl', ('dress', 'mix')),
  Recipe('soup', ('tomato', 'cucumber'), 'cheese', (), ('chop', 'rinse'), 'pan', ('mix', 'dress')),
  Recipe('sandwich', ('bread', 'cheese'), 'tomato', (), ('chop',), 'bowl', ()),
  Recipe('omelette', ('cheese', 'tomato'), 'cucumber', ('dress',), ('chop',), 'pan', ('mix',)),
)


def cook(world: World, person: Habits) -> Ways:
  """The start symbol: a recipe, then the next one."""
  return [(weight, (*_dish(recipe, person), Rule(cook))) for recipe, weight in zip(RECIPES, person.recipes)]


def _dish(recipe: Recipe, person: Habits) -> Items:
  """The sub-goals of a recipe."""
  first, last = ((item for goal in goals for item in _goal(goal, recipe)) for goals in (recipe.first, recipe.last))
  tools = _sometimes(person.early, Rule(_lay_out))
  return (*first, tools, Rule(_prepare, (recipe,)), *last, *_serve(recipe), Rule(_clean))


def _goal(goal: str, recipe: Recipe) -> Items:
  """'dress' or 'mix' for the vessel of a recipe."""
  if goal == 'dress':
    return (
      Step('take', 'bottle'),
      _opened('bottle'),
      Step('pour', 'bottle', recipe.vessel),
      _tidily(Step('close', 'bottle')),
      Step('put', 'bottle', 'shelf'),
    )
  return (Rule(_fetch, ('spoon',)), Step('stir', recipe.vessel), Step('put', 'spoon', 'counter'))


def _prepare(recipe: Recipe, world: World, person: Habits) -> Ways:
  """All ingredients together, or one after the other; with one more in every other case."""
  return [
    (0.5 * share, (Rule(rule, (recipe, food, *more)),))
    for food in (recipe.always, (*recipe.always, recipe.maybe))
    for rule, share, more in ((_gather, person.together, ((),)), (_single, 1 - person.together, ()))
  ]


def _gather(recipe: Recipe, left: tuple[str, ...], fetched: tuple[str, ...], world: World, person: Habits) -> Ways:
  """Fetches all ingredients, the next one chosen by liking; then treats them in that order, or in the reverse one."""
  if left:
    return [
      (share, (_opened('fridge'), *_moved(food, 'board'), Rule(_gather, (recipe, rest, (*fetched, food)))))
      for food, rest, share in _choices(left, person)
    ]
  return [
    (share, (Step('close', 'fridge'), *_treat(recipe, order)))
    for order, share in ((fetched, person.queue), (fetched[::-1], 1 - person.queue))
  ]


def _single(recipe: Recipe, left: tuple[str, ...], world: World, person: Habits) -> Ways:
  """Fetches and treats one ingredient after the other."""
  ways = []
  for food, rest, share in _choices(left, person):
    fetch = (_opened('fridge'), Step('take', food), Step('close', 'fridge'), Step('put', food, 'board'))
    ways.append((share, (*fetch, *_treat(recipe, (food,)), *((Rule(_single, (recipe, rest)),) if rest else ()))))
  return ways


def _choices(left: tuple[str, ...], person: Habits) -> list[tuple[str, tuple[str, ...], float]]:
  """Which ingredient is next: (it, those that remain, probability)."""
  weights = [person.liking[INGREDIENTS.index(food)] for food in left]
  return [(food, tuple(x for x in left if x != food), w / sum(weights)) for food, w in zip(left, weights)]


def _treat(recipe: Recipe, order: tuple[str, ...]) -> Items:
  """Rinses, chops and fills, in the recipe's order, the ingredients in theirs."""
  items: list[Step | Rule] = []
  for treatment in recipe.treat:
    if treatment == 'chop':
      items += [Rule(_fetch, ('knife',)), *(Step('cut', food) for food in order), Step('put', 'knife', 'counter')]
    elif washed := [Step('wash', food) for food in order if food in _WASHABLE]:
      items += [Step('open', 'tap'), *washed, Step('close', 'tap')]
  return (*items, *(Step('put', food, recipe.vessel) for food in order))


def _fetch(tool: str, world: World, person: Habits) -> Ways:
  """Takes a tool from the counter, or out of the drawer, which the untidy leave open."""
  if world.places[tool] != 'drawer':
    return [(1.0, (Step('take', tool),))]
  return [(1.0, (_opened('drawer'), Step('take', tool), _tidily(Step('close', 'drawer'))))]


def _lay_out(world: World, person: Habits) -> Ways:
  """Knife and spoon out of the drawer onto the counter, whatever of them is still in it."""
  tools = [tool for tool in TOOLS if world.places[tool] == 'drawer']
  moves = (step for tool in tools for step in _moved(tool, 'counter'))
  return [(1.0, (_opened('drawer'), *moves, Step('close', 'drawer')) if tools else ())]


def _serve(recipe: Recipe) -> Items:
  """The bowl leaves, full, and comes back empty; a pan is poured into the bowl before."""
  pan = (Step('take', 'pan'), Step('pour', 'pan', 'bowl'), _sometimes(0.15, Step('wash', 'pan')))
  bowl = (Step('take', 'bowl'), _sometimes(0.15, Step('wash', 'bowl')), Step('put', 'bowl', 'counter'))
  return (*pan, Step('put', 'pan', 'stove'), *bowl) if recipe.vessel == 'pan' else bowl


def _clean(world: World, person: Habits) -> Ways:
  """Between two dishes: often nothing, sometimes the board or the knife is washed, or the tools are put away."""
  rinse = (Step('open', 'tap'), Step('wash', 'knife'), Step('close', 'tap'))
  moves = [step for tool in TOOLS if world.places[tool] == 'counter' for step in _moved(tool, 'drawer')]
  return [
    (0.3, ()),
    (0.1, (Step('wash', 'board'),)),
    (0.15, (Rule(_fetch, ('knife',)), *rinse, Step('put', 'knife', 'counter'))),
    (0.45, (_opened('drawer'), *moves, Step('close', 'drawer')) if moves else ()),
  ]


def _moved(noun: str, place: str) -> tuple[Step, Step]:
  """Takes something and puts it at a place."""
  return Step('take', noun), Step('put', noun, place)


def _opened(noun: str) -> Rule:
  """Opens what is closed."""
  return Rule(_open, (noun,))


def _open(noun: str, world: World, person: Habits) -> Ways:
  return [(1.0, () if noun in world.opened else (Step('open', noun),))]


def _tidily(step: Step) -> Rule:
  """A step of the tidy."""
  return Rule(_tidy, (step,))


def _tidy(step: Step, world: World, person: Habits) -> Ways:
  return [(person.tidy, (step,)), (1 - person.tidy, ())]


def _sometimes(probability: float, item: Step | Rule) -> Rule:
  """An item with a given probability."""
  return Rule(_maybe, (probability, item))


def _maybe(probability: float, item: Step | Rule, world: World, person: Habits) -> Ways:
  return [(probability, (item,)), (1 - probability, ())]


@dataclasses.dataclass(frozen=True)
class State:
  """All that decides the future: the person, the world, and what is still on the agenda."""

  person: Habits
  world: World = dataclasses.field(default_factory=World)
  agenda: Items = (Rule(cook),)

  @property
  def key(self) -> Hashable:
    """Equal for two states of one person exactly when their futures have the same distribution."""
    world = self.world
    return self.agenda, tuple(world.places.items()), world.opened, world.chopped, tuple(world.filled.items())


def options(state: State) -> list[tuple[float, Step, State]]:
  """Every way to go on: (probability, next step, state after it); the probabilities add up to 1.

  Several ways may begin with the same step (two recipes both begin with 'open fridge'); they stay apart because
  their futures differ.
  """
  head, *rest = state.agenda
  if isinstance(head, Step):
    return [(1.0, head, State(state.person, state.world.after(head), tuple(rest)))]
  return [
    (share * p, step, after)
    for share, items in head.expand(*head.arguments, state.world, state.person)
    if share > 0
    for p, step, after in options(dataclasses.replace(state, agenda=(*items, *rest)))
  ]


def walk(rng: np.random.Generator, state: State, steps: int) -> list[tuple[State, Step]]:
  """Samples `steps` steps on from `state` -> [(state before the step, step)]."""
  walked = []
  for _ in range(steps):
    ways = options(state)
    cumulated = np.cumsum([p for p, _, _ in ways])
    _, step, after = ways[int(np.searchsorted(cumulated, rng.random() * cumulated[-1], side='right'))]
    walked.append((state, step))
    state = after
  return walked


def likeliest(belief: Iterable[tuple[float, State]]) -> tuple[str, float]:
  """The likeliest next action and its probability under a belief, [(probability, state)]."""
  shares: Counter[str] = Counter()
  for weight, state in belief:
    for p, step, _ in options(state):
      shares[step.action] += weight * p
  action = max(sorted(shares), key=shares.__getitem__)
  return action, shares[action] / shares.total()


def observe(belief: Iterable[tuple[float, State]], action: str) -> list[tuple[float, State]]:
  """Bayes' rule: the belief after an action was seen, equal states merged."""
  after: dict[Hashable, tuple[float, State]] = {}
  for weight, state in belief:
    for p, step, future in options(state):
      if step.action == action:
        after[future.key] = (after.get(future.key, (0.0,))[0] + weight * p, future)
  total = sum(weight for weight, _ in after.values())
  return [(weight / total, state) for weight, state in after.values()]


def context_accuracy(train: Sequence[Sequence[str]], test: Sequence[Sequence[str]], order: int) -> float:
  """Top-1 accuracy in [0, 1] of the next action from the last `order` actions, backing off to fewer when unseen."""
  counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
  for actions in train:
    for i, action in enumerate(actions):
      for n in range(min(order, i) + 1):
        counts[tuple(actions[i - n : i])][action] += 1
  best = {context: max(sorted(counter), key=counter.__getitem__) for context, counter in counts.items()}
  hits = [
    actions[i] == next(best[c] for n in range(min(order, i), -1, -1) if (c := tuple(actions[i - n : i])) in best)
    for actions in test
    for i in range(1, len(actions))
  ]
  return float(np.mean(hits))
