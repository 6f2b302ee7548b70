"""In a real browser: the templates in ComfyUI's list, and where their nodes and links are once one is open."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.servers import PACK

from .extramodels import beside
from .layout import faults
from .page import (
    FRONTENDS,
    RENDERERS,
    VIEW,
    choose,
    dismiss,
    forget_runs,
    make_4k_small,
    open_template,
    open_templates,
    opened_page,
    page_server,
    press,
    wait,
    wait_for_idle,
)

TEMPLATES = sorted((PACK / "example_workflows").glob("*.json"))
SANA = "Sana text to image"
COMPLETE = "app.graph._nodes.every(n => Boolean(LiteGraph.registered_node_types[n.type]))"


def test_they_are_listed_under_titles(page):
    """The file's name is all that the list shows, with the picture: no underscores, and the picture comes."""
    names = [path.stem for path in TEMPLATES]
    assert sorted(page.server.get("/workflow_templates").json()[page.server.pack_name]) == names
    dialog = open_templates(page)
    for name in names:
        card = dialog.get_by_test_id(f"template-workflow-{name}")
        assert name in card.inner_text() and name[0] == name[0].upper() and "_" not in name
        picture = card.get_by_role("img").first.element_handle()
        page.wait_for_function("picture => picture.complete && picture.naturalWidth === 560", arg=picture)
    choose(dialog, names[0])  # which closes the dialog in every version


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_it_opens_and_runs(page, path, tmp_path):
    """As it is in the file, but for the 4K one, which is made smaller; with nodes that are not here, ComfyUI says so.
    Nothing lies over anything, also after the run: nodes grow with what they show."""
    forget_runs(page)
    workflow = json.loads(path.read_text(encoding="utf-8"))
    show(page, path, says="missing node" if path.stem == SANA else "")
    page.screenshot(path=tmp_path / "opened.png")
    assert graph(page.evaluate("app.graph.serialize()")) == graph(workflow)
    assert faults(page) == []
    assert page.evaluate(COMPLETE) == (path.stem != SANA)
    if path.stem == SANA:  # without its nodes; with them below
        return
    if path.stem.startswith("4K"):
        make_4k_small(page)
    with page.expect_response("**/prompt") as asked:
        press(page, "Run")
    if path.stem.startswith("Compare"):
        page.get_by_label("original left, result right").wait_for(timeout=120_000)
    else:
        wait(page, "Decode", lambda text: text.endswith(" s"))
    wait_for_idle(page)
    (run,) = page.server.get(f"/history/{asked.value.json()['prompt_id']}").json().values()
    assert run["status"]["status_str"] == "success"
    after = faults(page)
    page.screenshot(path=tmp_path / "run.png")
    assert after == []


def graph(workflow: dict) -> tuple[dict, list]:
    """What a workflow is made of; of our nodes also what their widgets hold."""
    nodes = {n["id"]: (n["type"], n["widgets_values"] if "DCAE" in n["type"] else None) for n in workflow["nodes"]}
    return nodes, sorted(workflow["links"])


@pytest.fixture(scope="module", params=FRONTENDS)
def with_extra_models(request):
    with page_server(request.param, **beside()) as server:
        yield server


@pytest.mark.parametrize("drawn_by", RENDERERS)
def test_nothing_lies_over_anything_with_sanas_nodes(browser, with_extra_models, drawn_by, tmp_path):
    with opened_page(browser, with_extra_models, drawn_by) as page:
        show(page, PACK / "example_workflows" / f"{SANA}.json")
        page.screenshot(path=tmp_path / "opened.png")
        assert page.evaluate(COMPLETE)
        assert faults(page) == []


def show(page, path: Path, says: str = "") -> None:
    """Open a template by clicks; it is all in view, and near enough for its text to be drawn. The page says something,
    in letters of either case."""
    open_template(page, path.stem)
    nodes = len(json.loads(path.read_text(encoding="utf-8"))["nodes"])
    page.wait_for_function("nodes => app.graph._nodes.length === nodes", arg=nodes)
    if says:
        page.get_by_text(re.compile(says, re.IGNORECASE)).first.wait_for()
    if path.stem == SANA:
        page.wait_for_timeout(1000)  # for what ComfyUI says of missing nodes and models
        dismiss(page)
    else:
        wait(page, "Loader", bool)
    page.wait_for_function(
        """([width, height]) => {
            const {ds, low_quality} = app.canvas;
            return !low_quality && app.graph._nodes.every(({pos, size}) => [0, 1].every(
                axis => (pos[axis] + ds.offset[axis]) * ds.scale > 0
                    && (pos[axis] + size[axis] + ds.offset[axis]) * ds.scale <= [width, height][axis]));
        }""",
        arg=[VIEW["width"], VIEW["height"]],
    )
