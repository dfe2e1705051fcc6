"""Procedural worlds as sequences, pipelines with options, revisits, contact sheets and the ablation table."""

import json
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.evaluation import Row, evaluate, write_json
from worldstereo_ros.evaluation import world_sequences as worlds_module
from worldstereo_ros.evaluation.ablations import describe, findings, small_model_table, stage_pipelines
from worldstereo_ros.evaluation.contact_sheets import CELL_PX, LEFT_PX, MARGIN_PX, TOP_PX, ContactSheets, draw
from worldstereo_ros.evaluation.pipeline_options import PipelineName, Pipelines
from worldstereo_ros.evaluation.protocols import make_scenario
from worldstereo_ros.evaluation.report import read_json
from worldstereo_ros.evaluation.world_sequences import open_data, open_worlds, world_sequence
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.scenes import KINDS, PATHS, seed_of
from worldstereo_ros.world import WorldModel

SMALL = Camera.from_fov(64, 48, np.radians(75))
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def walk():
    """The first test world, small and short; views are rendered once for all tests."""
    return world_sequence("test", 0, views=9, camera=SMALL)


# --- worlds ---


def test_world_sequence_has_views_with_depth(walk):
    assert walk.path.name == "test0-room-ground"
    assert walk.scene.seed == seed_of("test", 0)
    assert len(walk) == 9
    assert walk.posed
    assert walk.has_depth
    view = walk[3]
    np.testing.assert_array_equal(view.world_from_camera, walk.poses[3])
    assert view.image.shape == (48, 64, 3)
    assert view.image.std() > 5
    assert (view.depth > 0).mean() > 0.9
    part = walk.subset([5, 3])
    assert list(part.indices) == [5, 3]
    assert part[1] is view  # rendered once, shared by all subsets
    assert [v.stamp_ns for v in part] == [walk[5].stamp_ns, view.stamp_ns]
    with pytest.raises(IndexError, match="9"):
        walk[9]


def test_kinds_and_paths_take_turns():
    names = [world_sequence("test", index, views=2).path.name for index in range(len(KINDS) + 1)]
    assert [name.split("-")[1] for name in names] == [*KINDS, next(iter(KINDS))]
    assert [name.split("-")[2] for name in names] == [
        PATHS[(i + i // len(KINDS)) % len(PATHS)] for i in range(len(names))
    ]


def test_open_worlds_takes_split_and_count():
    found = open_worlds("worlds:validation:2")
    assert [sequence.path.name.split("-")[0] for sequence in found] == ["validation0", "validation1"]
    assert {(s.camera.width, s.camera.height, len(s)) for s in found} == {(320, 240, worlds_module.VIEWS)}
    steps = np.linalg.norm(np.diff(found[0].poses[:, :3, 3], axis=0), axis=1)
    assert steps.max() <= worlds_module.MAX_STEP_M + 0.05
    for wrong in ("worlds:test", "worlds:exam:2", "worlds:test:0", "worlds:test:two", "worlds:test:2:3"):
        with pytest.raises(ValueError, match="worlds:SPLIT:COUNT"):
            open_data(wrong)


def test_worlds_without_a_free_path_are_skipped(monkeypatch):
    make_path = worlds_module.make_path

    def make_path_or_fail(scene, *arguments, **more):
        if scene.seed == seed_of("test", 0):
            raise ValueError("No free place was found.")
        return make_path(scene, *arguments, **more)

    monkeypatch.setattr(worlds_module, "make_path", make_path_or_fail)
    assert [s.path.name.split("-")[0] for s in open_worlds("worlds:test:1")] == ["test1"]


# --- names ---


def test_pipeline_name_is_parsed():
    name = PipelineName.parse("runs/small:memory?steps=40&compose=false&reference_attention=paired&guidance=1.5")
    assert name.model == "runs/small:memory"
    assert name.options == {"steps": 40, "compose": False, "reference_attention": "paired", "guidance": 1.5}
    assert PipelineName.parse("geometric").options == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m?steps=0", "a whole number in 1..1000 was expected"),
        ("m?steps=4.0", "a whole number"),
        ("m?compose=no", "true or false was expected"),
        ("m?guidance=nan", "a number in 1..100"),
        ("m?reference_attention=all", "one of full, paired, correspondence"),
        ("m?composed=true", "with an option of steps, guidance, compose"),
        ("m?steps", "OPTION=VALUE"),
        ("m?", "OPTION=VALUE"),
        ("m?steps=4&steps=5", "twice"),
        ("geometric?steps=4", "with an option of fill"),
        ("geometric?fill=fog", "one of smooth, planes"),
        ("open3d+telea?compose=false", "takes no options"),
    ],
)
def test_invalid_pipeline_name_is_rejected(text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        PipelineName.parse(text)
    assert str(caught.value).endswith(".")


def test_options_that_a_model_does_not_support_are_rejected(small_checkpoint):
    with pytest.raises(ValueError, match="takes no references"):
        Pipelines([f"{small_checkpoint}:camera?memory=false"])


# --- options at work ---


def imagined(loaded, name, walk, steps=()):
    with loaded.use(name) as pipeline:
        world = WorldModel(pipeline)
        for index in (0, 4):
            world.observe(walk[index])
        return np.stack([view.image for view in world.imagine(walk.poses[5:8], SMALL)])


def test_options_change_the_images_and_are_restored_afterwards(small_checkpoint, walk):
    memory = f"{small_checkpoint}:memory"
    short = f"{memory}?steps=2&compose=false"
    names = [f"{memory}?steps=2", short, f"{short}&control=false", f"{short}&memory=false"]
    names += [f"{short}&reference_attention=paired", f"{short}&guidance=3", f"{memory}?steps=3&compose=false"]
    loaded = Pipelines(names)
    assert len(loaded._loaded) == 1
    images = {name: imagined(loaded, name, walk) for name in names}
    for name in names:
        if name not in (short, f"{short}&guidance=3"):
            assert not np.array_equal(images[name], images[short]), name
    assert np.array_equal(imagined(loaded, short, walk), images[short])
    (pipeline,) = loaded._loaded.values()
    assert pipeline.transformer.controlnet is not None
    assert pipeline.transformer.config.controlnet_cfg
    assert pipeline.transformer.config.reference_attention == "full"
    assert pipeline.steps is None
    assert pipeline.compose_observed


def test_without_control_the_cloud_has_no_effect(small_checkpoint, walk):
    """The backbone depends on the start view only: another cloud gives the same images."""
    camera = f"{small_checkpoint}:camera?steps=2&compose=false"
    loaded = Pipelines([f"{camera}&control=false", camera])

    def images(name, depth):
        with loaded.use(name) as pipeline:
            world = WorldModel(pipeline)
            world.observe(replace(walk[0], depth=walk[0].depth * depth))
            return np.stack([view.image for view in world.imagine(walk.poses[1:3], SMALL)])

    backbone, controlled = f"{camera}&control=false", camera
    assert np.array_equal(images(backbone, 1.0), images(backbone, 0.6))
    assert not np.array_equal(images(controlled, 1.0), images(controlled, 0.6))


def test_options_are_restored_after_an_error(small_checkpoint):
    name = f"{small_checkpoint}:memory?control=false&compose=false"
    loaded = Pipelines([name])

    def fail():
        with loaded.use(name) as pipeline:
            assert pipeline.transformer.controlnet is None
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    (pipeline,) = loaded._loaded.values()
    assert pipeline.transformer.controlnet is not None
    assert pipeline.compose_observed


# --- evaluation ---


def test_way_back_is_a_separate_call(walk):
    scenario = make_scenario(walk, "revisit")
    out, back = scenario.legs
    assert len(out) + len(back) == len(scenario.path)
    assert scenario.pairs
    for first, second in scenario.pairs:
        assert first < scenario.cuts[0] <= second
        np.testing.assert_allclose(scenario.path[first], scenario.path[second])
    np.testing.assert_allclose(back[-1], walk.poses[0])


def test_evaluate_on_worlds_with_options(small_checkpoint, walk):
    progress, arrived = [], []
    names = ["geometric", f"{small_checkpoint}:memory?steps=2&compose=false", f"{small_checkpoint}:memory-dmd"]
    rows = evaluate(
        *([walk], ["single", "sparse", "revisit"], names),
        every=2,
        with_features=False,
        progress=progress.append,
        on_row=arrived.append,
    )
    assert arrived == rows
    found = {(row.protocol, row.pipeline): row for row in rows}
    assert len(found) == 15
    assert found["single", "geometric"].psnr > found["single", names[1]].psnr  # an untrained model
    assert found["single", "geometric"].steps is None
    assert found["single", names[1]].steps == 2
    assert found["single", names[2]].steps == 4
    assert found["single", names[1]].observed_recall == 0  # no pixel is marked as observed
    assert found["single", names[2]].observed_precision > 0.9
    assert any("denoising 2 of 2" in text and "view 1 of 4" in text for text in progress)
    # The geometric pipeline repeats what it imagined; an untrained model does not.
    revisited = {name: found["revisit", name].psnr_revisited_imagined for name in names}
    assert revisited["geometric"] > 20 > revisited[names[1]]
    assert found["revisit", "open3d+telea"].psnr_revisited_imagined is None
    assert found["single", "geometric"].psnr_revisited_imagined is None


def test_command_writes_rows_and_contact_sheet(tmp_path, walk, monkeypatch):
    monkeypatch.setattr(worlds_module, "world_sequence", lambda split, index: walk)
    arguments = ["evaluate", "--data", "worlds:test:1", "--protocol", "single", "--every", "3"]
    arguments += ["--json", str(tmp_path / "rows.json"), "--sheet", str(tmp_path / "sheet.png")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "geometric" in result.output
    rows = read_json(tmp_path / "rows.json")
    assert {row.pipeline for row in rows} == {"geometric", "open3d+telea", "constant"}
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[1] == 2 * MARGIN_PX + LEFT_PX + 3 * (CELL_PX + 10) - 10
    result = CliRunner().invoke(app, [*arguments, "--pipeline", "geometric?steps=1"])
    assert result.exit_code == 1
    assert "with an option of fill" in result.output


# --- sheets ---


def test_contact_sheet_outlines_unseen_regions(walk, tmp_path):
    sheets = ContactSheets()
    unseen = [np.zeros((48, 64), bool) for _ in range(3)]
    unseen[1][10:40, 30:60] = True
    section = sheets.add_section("place", "single", [walk[0]], [walk[1], walk[2], walk[3]], unseen)
    for frame in range(3):
        section.add("geometric", frame, np.full((48, 64, 3), 100, np.uint8))
    sheet = draw(section)
    height = round(CELL_PX * 48 / 64)
    step = (sheet.shape[0] - TOP_PX - MARGIN_PX) // 3
    cell = [
        sheet[TOP_PX + 2 * step :, MARGIN_PX + LEFT_PX + column * (CELL_PX + 10) :][:height, :CELL_PX]
        for column in range(3)
    ]
    assert (cell[0] == 100).all()
    changed = (cell[1] != 100).any(axis=2)
    rows, columns = np.nonzero(changed)
    scale = CELL_PX / 64
    assert abs(rows.min() - 10 * scale) <= 3
    assert abs(columns.max() - 60 * scale) <= 3
    assert not changed[int(15 * scale) : int(35 * scale), int(35 * scale) : int(55 * scale)].any()
    assert sheets.add_section("place", "revisit", [walk[0]], [walk[0]], [unseen[0]]) is None
    (file,) = sheets.write(tmp_path / "a" / "sheet.png")
    assert file.name == "sheet.png"
    sheets.add_section("other", "sparse", [walk[0]], [walk[1], walk[2]], unseen[:2])
    assert [f.name for f in sheets.write(tmp_path / "sheet.jpg")] == [
        "sheet-single-place.jpg",
        "sheet-sparse-other.jpg",
    ]


# --- the table ---


def test_stage_pipelines_have_different_lines(small_checkpoint):
    names = stage_pipelines(small_checkpoint)
    lines = [describe(name) for name in names]
    assert len(set(lines)) == len(names)
    assert {line.stage for line in lines} >= {"backbone alone", "+ GGM", "+ GGM + SSM", "distilled", "geometric"}
    assert "+ GGM + SSM, paired" in {line.stage for line in lines}
    assert describe("runs/a:memory-dmd?steps=2").stage == "distilled, 2 steps"
    assert describe("small").stage == describe("runs/a/finetuned:memory-dmd").stage == "distilled, finetuned"
    assert describe("runs/a:memory?steps=40&compose=false").title == "+ GGM + SSM, not composed"
    with pytest.raises(ValueError, match="to measure"):
        stage_pipelines(small_checkpoint / "nowhere")


def stage_rows(ssm=15.0, sequence="test0-room-ground"):
    """Rows of all stages that meet all expectations."""
    quality = {":camera?control=false": 12.0, ":camera": 14.0, ":memory": ssm, ":memory-dmd": 14.8}
    rows = [Row(sequence, p, "geometric", 4, psnr=13.0, psnr_unseen=9.5, psnr_seen=20.0) for p in ("single", "sparse")]
    for name, psnr in quality.items():
        for compose in (True, False):
            mark = "" if compose else ("&" if "?" in name else "?") + "compose=false"
            figures = {"psnr": psnr, "psnr_unseen": psnr - 2, "psnr_seen": 20.0, "ssim": psnr / 20}
            seconds = 0.1 if "dmd" in name else 1.0
            rows += [
                Row(sequence, protocol, f"r{name}{mark}", 4, **figures, seconds_per_view=seconds)
                for protocol in ("single", "sparse")
            ]
    return rows


def test_table_has_a_line_for_each_pipeline_and_findings():
    rows = stage_rows()
    text = small_model_table(rows)
    assert "### Unseen worlds" in text
    assert "### Real sequences" not in text
    assert "| backbone alone | no | 12.00 | 10.00 | 0.600 |" in text
    assert "| geometric |  | 13.00 | 9.50 | - |" in text
    assert "revisit" not in text  # nothing was measured there
    said = findings(rows)
    assert len(said) == 10
    assert all(sentence.endswith("**yes**.") for sentence in said), said
    finetuned = [
        replace(row, pipeline=row.pipeline.replace("r:", "r/finetuned:"), psnr_unseen=12.0)
        for row in rows
        if ":memory-dmd" in row.pipeline
    ]
    said = findings([*rows, *finetuned])
    assert [line for line in said if "unseen pixels: distilled, finetuned, composed, has +2.50 dB" in line]
    assert sum(line.endswith("**no**.") for line in said) == 2
    worse = findings(stage_rows(ssm=13.9))
    assert worse[0] == "backbone alone (12.00) < + GGM (14.00) < + GGM + SSM (13.90) in dB PSNR: **no**."
    both = small_model_table([*rows, *stage_rows(sequence="office")])
    assert both.count("| backbone alone | no |") == 2
    later = [replace(row, psnr=9.0) for row in rows if row.pipeline == "r:camera"]
    assert "| + GGM | yes | 9.00 |" in small_model_table([*rows, *later])


def test_attention_modes_have_their_own_table():
    rows = stage_rows()
    full = [row for row in rows if row.pipeline == "r:memory?compose=false"]
    paired = [
        replace(row, pipeline="r:memory?reference_attention=paired&compose=false", seconds_per_view=0.7) for row in full
    ]
    text = small_model_table([*rows, *paired])
    first, second = text.split("### Unseen worlds: attention over references")
    assert "paired" not in first
    assert "| + GGM + SSM | no |" in second
    assert "0.70 |" in second


def test_pipelines_with_the_same_line_are_rejected():
    rows = stage_rows()
    with pytest.raises(ValueError, match="same line"):
        small_model_table([*rows, replace(rows[-1], pipeline="other:memory-dmd?compose=false")])
    with pytest.raises(ValueError, match="no rows"):
        small_model_table([])


def test_script_writes_the_tables_into_the_page(tmp_path):
    import write_small_model as script

    page, rows = tmp_path / "page.md", tmp_path / "rows.json"
    page.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    write_json(stage_rows(), rows)
    assert script.main([str(rows), "--page", str(page), "--check"]) == 1
    assert "old" in page.read_text()
    assert script.main([str(rows), "--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| backbone alone | no |" in text
    assert script.main([str(rows), "--page", str(page), "--check"]) == 0
    page.write_text("no marks")
    assert script.main([str(rows), "--page", str(page)]) == 1
    rows.write_text(json.dumps([1]))
    assert script.main([str(rows), "--page", str(page)]) == 1
