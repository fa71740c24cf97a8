"""What the contract itself does."""

from core.train import task


def test_a_judge_is_made_when_it_is_asked_for():
  made = []

  class Judge:
    def accuracy(self, variables, split):
      return task.Evaluation({f'{split} of {variables}': 1.0})

  def judge():
    made.append(Judge())
    return made[-1]

  evaluators = task.deferred(judge, ('accuracy', 'error'))
  assert set(evaluators) == {'accuracy', 'error'} and not made
  assert evaluators['accuracy']('weights', 'val').scalars == {'val of weights': 1.0} and len(made) == 1
