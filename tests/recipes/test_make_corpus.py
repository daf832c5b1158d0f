"""The recipe that makes a corpus: its status, its report, and the file that the other recipes open."""

from world import launch

from rqa.data import open_passages


def test_a_folder_becomes_a_corpus_and_a_change_is_reported(world, tmp_path):
    folder, corpus = tmp_path / "in", tmp_path / "out/corpus.jsonl"
    folder.mkdir()
    (folder / "lamps.md").write_text("# Oil\n\nThe lamp.\n\n# Gas\n\nNo lamp.\n", encoding="utf-8")
    (folder / "latin.txt").write_bytes(b"\xe9")
    flags = {"--embedding_model": world.encoder, "--input_path": str(folder), "--output_path": str(corpus)}
    output = launch("make_corpus.py", {**flags, "--max_passage_tokens": "500"}, expect=1)
    assert "left out: latin.txt: expected UTF-8, got another encoding at byte 1" in output
    assert "tokens of a passage, of at most 127:" in output  # of the encoder
    assert [(each.title, each.text) for each in open_passages(corpus)] == [
        ("lamps > Oil", "# Oil\n\nThe lamp."),
        ("lamps > Gas", "# Gas\n\nNo lamp."),
    ]
    (folder / "lamps.md").write_text("# Oil\n\nThe lamp.\n", encoding="utf-8")
    assert "added 0, removed 1, kept 1" in launch("make_corpus.py", {**flags, "--max_bad_files": "1"})
    assert len(open_passages(corpus)) == 1
