"""What a preparation met is counted, shown by example and listed in full."""

import csv

from launch_worlds import CONFIG

from launch import prepare


def launch(folder, *options):
  return prepare.main([f'--config={CONFIG}', f'--config.data.records={folder}', *options])


def test_counts_and_problems_are_printed_and_listed(tmp_path, capsys):
  assert launch(tmp_path) == 0
  printed = capsys.readouterr().out
  for expected in ('rows: 42 records', 'train', '40', '5 x unreadable video', '2.avi  truncated', 'and 2 more',
                   '1 x odd name', 'All 6 problems: ', 'clean: 1 records'):  # fmt: skip
    assert expected in printed, expected
  assert '3.avi' not in printed
  with (tmp_path / 'problems_rows.csv').open(newline='') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 6 and rows[3] == {'kind': 'unreadable video', 'path': '3.avi', 'detail': 'truncated'}
  assert not (tmp_path / 'problems_clean.csv').exists()


def test_problems_of_an_earlier_try_do_not_stay(tmp_path):
  (tmp_path / 'problems_clean.csv').write_text('old')
  assert launch(tmp_path) == 0
  assert not (tmp_path / 'problems_clean.csv').exists()


def test_a_dataset_without_a_record_is_an_error(tmp_path, capsys):
  assert launch(tmp_path, '--config.data.kind=none') == 2
  captured = capsys.readouterr()
  assert 'no record was written for nothing' in captured.err and 'missing subject' in captured.out


def test_mistakes_end_in_one_line(tmp_path, capsys):
  assert launch(tmp_path, '--config.data.rot=/x') == 2
  assert "unknown config key 'data.rot'" in capsys.readouterr().err
  assert launch(tmp_path, '/data/OULU') == 2
  assert "'/data/OULU' belongs to no flag" in capsys.readouterr().err
