"""Networks that see members' maps, or look where these say: known answers through the whole predictor."""

from __future__ import annotations

import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny import BINARY, LAYERS, THREE, Channel, Constant, neighbourhood, pointwise, segmenter
from torch import nn

from maskloom.data.augment import AugmentSettings
from maskloom.data.clahe import clahe
from maskloom.data.dataset import Key, SegmentationDataset, with_guides
from maskloom.data.input_policy import cut_image
from maskloom.data.mask_coding import MaskCoding
from maskloom.errors import UserError
from maskloom.inference import one_pass as room
from maskloom.inference.guidance import GuidanceSettings, RegionSettings, guides_of, regions_of
from maskloom.inference.merging import Merge
from maskloom.inference.needs import MemberMap
from maskloom.inference.predictor import InferenceSettings, Predictor
from maskloom.models.segmenter import Segmenter
from maskloom.records import MaskFile, Record, Task
from maskloom.windows import Window, padding_to

CPU = torch.device("cpu")
SIZE = (45, 61)
BOX = RegionSettings(of="coarse", minimum_area=20, margin=3, round_to=8, scale_pixels=False)
CONTOUR = RegionSettings(
    of="coarse", kind="contour", minimum_area=20, margin=2, window=16, context=3, scale_pixels=False
)
POLICIES = [
    {"mode": "full"},
    {"mode": "resize", "size": (24, 40)},
    {"mode": "window", "size": (16, 24)},
    {"mode": "window", "size": (8, 8), "scale": 0.7},
    {"mode": "parts", "parts": (2, 3), "overlap": 0.2},
]


def photo(dtype: str = "uint8") -> np.ndarray:
    top = {"uint8": 255, "uint16": 60000, "float32": 1}[dtype]
    return (np.random.default_rng(5).random((*SIZE, 3)) * top).astype(dtype)


def noise(num_maps: int = 1, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_maps, *SIZE), np.uint8)


def blob() -> np.ndarray:
    """A coarse map: 200 in rows 10 … 24 and columns 20 … 43, 30 elsewhere."""
    values = np.full((1, *SIZE), 30, np.uint8)
    values[:, 10:25, 20:44] = 200
    return values


def tree(*leaves: str | Merge) -> Merge:
    return Merge(children=leaves)


def predictor(
    networks: dict[str, Segmenter],
    result: Merge | None = None,
    *,
    guidance: dict[str, GuidanceSettings] | None = None,
    members: dict[str, Merge] | None = None,
    plain: bool = False,
    **settings: object,
) -> Predictor:
    options = InferenceSettings.model_validate({"precision": "float32", **settings})
    names = result or tree(*networks)
    return Predictor(names, networks, options, CPU, guidance=guidance, members=members, plain=plain)


def guided(*maps: str, region: RegionSettings | None = None) -> GuidanceSettings:
    return GuidanceSettings(maps=maps, region=region)


# --- maps as channels


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_network_that_copies_its_guide_returns_the_members_map(dtype: str) -> None:
    scale = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}[dtype]
    first = {f"m/{seed}": segmenter(neighbourhood(seed=seed), dtype=dtype) for seed in range(2)}
    second = segmenter(Channel(3), channels=4, dtype=dtype)
    for network in (*first.values(), second):
        network.normalisation = network.normalisation.model_copy(update={"scale": scale})
    alone = predictor(first, views="flip")(photo(dtype))["result"]
    networks = first | {"second/0": second}
    ask = predictor(
        networks, tree("second/0"), guidance={"second/0": guided("m")}, members={"m": tree("m/0", "m/1")}, views="flip"
    )
    found = ask(photo(dtype))["result"]
    assert len(np.unique(found)) > 10 and np.array_equal(found, alone)


def test_guides_follow_the_image_in_the_stated_order_class_by_class() -> None:
    first, second = noise(2, 1), noise(2, 2)
    network = segmenter(Channel(5, 4), LAYERS, channels=7)  # channels: 3 of the image, b's two maps, a's two maps
    ask = predictor({"s/0": network}, guidance={"s/0": guided("b", "a")}, views="symmetry")
    found = ask(photo(), {"a": first, "b": second})["result"]
    assert np.array_equal(found[0], first[0]) and np.array_equal(found[1], second[1])


@pytest.mark.parametrize("policy", POLICIES)
def test_given_maps_equal_computed_maps(policy: dict[str, object]) -> None:
    first = {f"m/{seed}": segmenter(neighbourhood(2, seed=seed), LAYERS) for seed in range(2)}
    second = {
        f"s/{seed}": segmenter(pointwise(2, seed=seed, channels=5), LAYERS, channels=5, **policy) for seed in range(2)
    }
    guidance, members = dict.fromkeys(second, guided("m")), {"m": tree("m/0", "m/1")}
    stored = predictor(first, members["m"])(photo())["result"]
    computed = predictor(first | second, tree("s/0", "s/1"), guidance=guidance, members=members)(photo())["result"]
    from_files = predictor(second, guidance=guidance)(photo(), {"m": stored})["result"]
    assert np.array_equal(computed, from_files)


def test_a_guided_network_sees_what_a_plain_network_sees_of_image_and_guides() -> None:
    guide = noise()
    network = segmenter(pointwise(channels=4), channels=4, mode="window", size=(16, 24))
    found = predictor({"s/0": network}, guidance={"s/0": guided("m")}, views="flip")(photo(), {"m": guide})["result"]
    side_by_side = with_guides(photo(), guides_of([guide]))
    assert np.array_equal(found, predictor({"s/0": network}, views="flip")(side_by_side)["result"])


def test_guides_are_maps_with_views_also_for_the_map_without() -> None:
    first, second = segmenter(neighbourhood()), segmenter(Channel(3), channels=4)
    found = predictor(
        {"m/0": first, "s/0": second},
        tree("s/0"),
        guidance={"s/0": guided("m")},
        members={"m": tree("m/0")},
        plain=True,
        views="symmetry",
    )(photo())
    with_views = predictor({"m/0": first}, views="symmetry")(photo())["result"]
    assert not np.array_equal(with_views, predictor({"m/0": first}, views="none")(photo())["result"])
    assert np.array_equal(found["plain"], with_views) and np.array_equal(found["result"], with_views)


def test_three_layers() -> None:
    networks = {
        "a/0": segmenter(neighbourhood()),
        "b/0": segmenter(pointwise(channels=4), channels=4),
        "c/0": segmenter(Channel(3), channels=5),
    }
    guidance, members = {"b/0": guided("a"), "c/0": guided("b", "a")}, {"a": tree("a/0"), "b": tree("b/0")}
    found = predictor(networks, tree("c/0"), guidance=guidance, members=members)(photo())["result"]
    second = predictor(networks, tree("b/0"), guidance=guidance, members=members)(photo())["result"]
    assert np.array_equal(found, second)


# --- maps as leaves


def test_maps_from_outside_are_leaves() -> None:
    outside = noise()
    ask = predictor({"m/0": segmenter(Constant(0.0))}, Merge(children=("m/0", "outside"), weights=(1, 3)))
    found = ask(photo(), {"outside": outside})["result"]
    assert np.array_equal(found, np.round((0.5 + 3 * (outside / 255)) / 4 * 255).astype(np.uint8))


def test_a_members_name_stands_for_its_map() -> None:
    networks = {f"m/{seed}": segmenter(neighbourhood(seed=seed)) for seed in range(3)}
    result, members = tree("m", "m/2"), {"m": tree("m/0", "m/1")}
    ask = predictor(networks, result, members=members, plain=True)
    stored = predictor(networks, members["m"], plain=True)(photo())
    third = predictor(networks, tree("m/2"), plain=True)(photo())
    found = ask(photo())
    for kind in ("result", "plain"):
        assert np.abs(found[kind] - (stored[kind].astype(float) + third[kind]) / 2).max() <= 1
    given = ask(photo(), {"m": noise()})["result"]
    assert np.abs(given - (noise().astype(float) + third["result"]) / 2).max() <= 1


# --- regions


@pytest.mark.parametrize("views", ["none", "symmetry"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_constant_network_fills_the_box_alone(policy: dict[str, object], views: str) -> None:
    network = segmenter(Constant(0.85), **policy)
    ask = predictor({"s/0": network}, guidance={"s/0": guided(region=BOX)}, views=views)
    expected = blob()
    # rows 7 … 27: 21 → 24, one more above and two below; columns 17 … 46: 30 → 32, one more on each side
    expected[:, 6:30, 16:48] = round(255 / (1 + np.exp(-0.85)))
    assert np.array_equal(ask(photo(), {"coarse": blob()})["result"], expected)


@pytest.mark.parametrize("batch_pixels", [1, 16 * 16 * 3, 10**7])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_constant_network_fills_the_windows_alone(policy: dict[str, object], batch_pixels: int) -> None:
    network = segmenter(Constant(0.85, -0.3), LAYERS, **policy)
    coarse = np.concatenate([blob(), blob() // 2])
    ask = predictor({"s/0": network}, guidance={"s/0": guided(region=CONTOUR)}, batch_pixels=batch_pixels)
    expected = coarse.copy()
    windows = regions_of(coarse, CONTOUR)
    assert len(windows) > 4
    for window in windows:
        expected[(0, *window.clipped(SIZE).slices)] = round(255 / (1 + np.exp(-0.85)))
        expected[(1, *window.clipped(SIZE).slices)] = round(255 / (1 + np.exp(0.3)))
    assert np.array_equal(ask(photo(), {"coarse": coarse})["result"], expected)


@pytest.mark.parametrize("policy", [POLICIES[0], POLICIES[2], POLICIES[4]])
@pytest.mark.parametrize("region", [BOX, CONTOUR])
def test_a_pointwise_network_says_the_same_in_a_region(policy: dict[str, object], region: RegionSettings) -> None:
    network = pointwise()
    whole = predictor({"m/0": segmenter(network)}, views="none")(photo())["result"]
    ask = predictor({"s/0": segmenter(network, **policy)}, guidance={"s/0": guided(region=region)}, views="flips")
    found = ask(photo(), {"coarse": blob()})["result"]
    expected = blob()
    for window in regions_of(blob(), region):
        rows, columns = window.clipped(SIZE).slices
        expected[:, rows, columns] = whole[:, rows, columns]
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found != expected).mean() < 1e-3


def test_a_region_is_prepared_as_an_image_of_its_own() -> None:
    network = segmenter(neighbourhood(), mode="resize", size=(32, 48), clahe=True)
    found = predictor({"s/0": network}, guidance={"s/0": guided(region=BOX)})(photo(), {"coarse": blob()})["result"]
    (window,) = regions_of(blob(), BOX)
    alone = predictor({"s/0": network})(cut_image(photo(), window))["result"]
    assert np.array_equal(found[(0, *window.slices)], alone[0])


def test_regions_with_guides() -> None:
    """The network copies its guide: inside the windows the result is the guide, elsewhere the coarse map."""
    network = segmenter(Channel(4), channels=5)
    guide = noise()
    for region in (BOX, CONTOUR):
        ask = predictor({"s/0": network}, guidance={"s/0": guided("coarse", "guide", region=region)})
        found = ask(photo(), {"coarse": blob(), "guide": guide})["result"]
        expected = blob()
        for window in regions_of(blob(), region):
            rows, columns = window.clipped(SIZE).slices
            expected[:, rows, columns] = guide[:, rows, columns]
        assert np.array_equal(found, expected)


def test_a_box_beyond_the_border_is_filled_with_mirrored_content() -> None:
    values = np.full((1, *SIZE), 255, np.uint8)
    network = segmenter(neighbourhood())
    found = predictor({"s/0": network}, guidance={"s/0": guided(region=BOX)})(photo(), {"coarse": values})["result"]
    (window,) = regions_of(values, BOX)
    assert window == Window(-1, -1, 48, 64)
    alone = predictor({"s/0": network})(cut_image(photo(), window))["result"]
    assert np.array_equal(found, alone[:, 1:-2, 1:-2])


def test_where_nothing_is_found_the_coarse_map_is_the_result() -> None:
    network = segmenter(Constant(float("nan")))
    nothing = blob() // 4
    for region in (BOX, CONTOUR):
        ask = predictor({"s/0": network}, guidance={"s/0": guided(region=region)}, plain=True)
        found = ask(photo(), {"coarse": nothing})
        assert np.array_equal(found["result"], nothing) and np.array_equal(found["plain"], nothing)


def test_coarse_to_fine_in_one_pass_is_coarse_then_fine() -> None:
    class Left(nn.Module):
        """Finds an object in the left half of what it sees of the image, wherever it was turned."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = torch.full_like(images[:, :1], -3.0)
            logits[..., : images.shape[-1] // 2] = 3.0
            return logits

    networks = {f"c/{fold}": segmenter(Left(), mode="resize", size=(16, 24)) for fold in range(2)}
    networks |= {f"f/{fold}": segmenter(neighbourhood(seed=fold)) for fold in range(2)}
    fine, members = tree("f/0", "f/1"), {"coarse": tree("c/0", "c/1")}
    guidance = dict.fromkeys(("f/0", "f/1"), guided(region=BOX))
    coarse = predictor(networks, members["coarse"], views="none")(photo())["result"]
    assert len(regions_of(coarse, BOX)) == 1 and regions_of(coarse, BOX)[0].width < 48
    found = predictor(networks, fine, guidance=guidance, members=members, views="none")(photo())["result"]
    apart = predictor(networks, fine, guidance=guidance, views="none")(photo(), {"coarse": coarse})["result"]
    assert np.array_equal(found, apart) and not np.array_equal(found, coarse)


@pytest.mark.parametrize("policy", [{"mode": "full"}, {"mode": "resize", "size": (24, 40), "clahe": True}])
@pytest.mark.parametrize("region", [None, BOX])
def test_networks_see_in_prediction_what_they_saw_in_training(
    tmp_path: Path, policy: dict[str, object], region: RegionSettings | None
) -> None:
    cv2.imwrite(str(tmp_path / "image.png"), photo()[..., ::-1])
    cv2.imwrite(str(tmp_path / "mask.png"), blob()[0] // 200)
    network = segmenter(Channel(3), channels=4, **policy)
    dataset = SegmentationDataset(
        records=[Record(id="a", image=tmp_path / "image.png", size=SIZE, truth=MaskFile(path=tmp_path / "mask.png"))],
        task=BINARY,
        coding=MaskCoding(),
        policy=network.policy,
        augment=AugmentSettings(),
        seed=0,
        guides=lambda _: guides_of([blob()]),
        regions=None if region is None else lambda _: regions_of(blob(), region),
    )
    sample = dataset[Key(0, 0, 0)].image
    ask = predictor({"s/0": network}, guidance={"s/0": guided("coarse", region=region)}, views="none")
    seen: list[torch.Tensor] = []
    ask._segmenters["s/0"].network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ask(photo(), {"coarse": blob()})
    stored = ((seen[-1] * 0.3 + 0.4) * 255).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()
    padding = padding_to((sample.shape[0], sample.shape[1]), (stored.shape[0], stored.shape[1]))
    assert np.array_equal(stored[padding.interior((stored.shape[0], stored.shape[1])).slices], sample)


# --- parts and equalised images


@pytest.mark.parametrize("task", [BINARY, THREE, LAYERS])
@pytest.mark.parametrize("overlap", [0.0, 0.3])
def test_parts_equal_the_whole_for_a_pointwise_network(task: Task, overlap: float) -> None:
    network = pointwise(task.num_maps)
    whole = predictor({"m/0": segmenter(network, task)}, views="none")(photo())["result"]
    parts = segmenter(network, task, mode="parts", parts=(1, 2), overlap=overlap)
    found = predictor({"m/0": parts}, views="flip")(photo())["result"]
    assert np.abs(found.astype(int) - whole).max() <= 1
    assert (found != whole).mean() < 1e-3


def test_each_part_is_seen_alone() -> None:
    """The mean of what a network sees: that of its half."""

    class Mean(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            means = (images[:, :1] * 0.3 + 0.4).mean(dim=(2, 3), keepdim=True)
            return means.logit().expand(-1, -1, *images.shape[-2:])

    image = np.zeros((16, 32, 3), np.uint8)
    image[:, 16:] = 200
    image[:, :16] = 40
    network = segmenter(Mean(), mode="parts", parts=(1, 2))
    found = predictor({"m/0": network}, views="flip")(image)["result"]
    assert np.array_equal(found[0], image[..., 0])


def test_equalised_images_are_those_equalised_by_hand() -> None:
    for policy in POLICIES:
        network = neighbourhood()
        found = predictor({"m/0": segmenter(network, clahe=True, **policy)}, views="flip")(photo())["result"]
        by_hand = predictor({"m/0": segmenter(network, **policy)}, views="flip")(clahe(photo()))["result"]
        assert np.array_equal(found, by_hand)
        assert not np.array_equal(found, predictor({"m/0": segmenter(network, **policy)})(photo())["result"])


def test_guides_are_not_equalised() -> None:
    guide = noise()
    network = segmenter(Channel(3), channels=4, clahe=True)
    ask = predictor({"s/0": network}, guidance={"s/0": guided("m")})
    assert np.array_equal(ask(photo(), {"m": guide})["result"], guide)


# --- once, and no longer than needed


def count_calls(ask: Predictor) -> dict[str, int]:
    calls = dict.fromkeys(ask._segmenters, 0)

    def counter(name: str) -> object:
        def count(*_: object) -> None:
            calls[name] += 1

        return count

    for name, network in ask._segmenters.items():
        network.network.register_forward_hook(counter(name))  # type: ignore[arg-type]
    return calls


def two_layers(ending: str | None = None) -> tuple[dict[str, Segmenter], Merge, dict[str, GuidanceSettings], Merge]:
    first = tree("m/0", "m/1")
    networks = {f"m/{seed}": segmenter(neighbourhood(seed=seed)) for seed in range(2)}
    networks |= {f"s/{seed}": segmenter(pointwise(seed=seed, channels=4), channels=4) for seed in range(2)}
    networks |= {"last/0": segmenter(Constant(0.3), mode="resize", size=(24, 40))}
    result = tree(first, tree("s/0", "s/1"), *([ending] if ending else []))
    return networks, result, dict.fromkeys(("s/0", "s/1"), guided("m")), first


def test_every_network_runs_once() -> None:
    networks, result, guidance, first = two_layers()
    ask = predictor(networks, result, guidance=guidance, members={"m": first}, views="none")
    calls = count_calls(ask)
    ask(photo())
    assert calls == {"m/0": 1, "m/1": 1, "s/0": 1, "s/1": 1}
    ask(photo(), {"m": noise()})
    assert calls == {"m/0": 2, "m/1": 2, "s/0": 2, "s/1": 2}
    second = predictor(networks, tree("s/0", "s/1"), guidance=guidance, members={"m": first}, views="none")
    calls = count_calls(second)
    second(photo(), {"m": noise()})
    assert calls == {"m/0": 0, "m/1": 0, "s/0": 1, "s/1": 1}


def test_one_pass_over_two_layers_is_the_mean_of_both() -> None:
    networks, result, guidance, first = two_layers()
    found = predictor(networks, result, guidance=guidance, members={"m": first})(photo())["result"]
    maps = [
        predictor(networks, below, guidance=guidance, members={"m": first})(photo())["result"].astype(float)
        for below in (first, tree("s/0", "s/1"))
    ]
    assert np.abs(found - sum(maps) / 2).max() <= 1


@pytest.mark.parametrize("region", [None, BOX])
def test_members_maps_and_inputs_are_let_go(monkeypatch: pytest.MonkeyPatch, region: RegionSettings | None) -> None:
    networks, result, guidance, first = two_layers("last/0")
    guidance = {name: guided("m", region=region and region.model_copy(update={"of": "m"})) for name in guidance}
    ask = predictor(networks, result, guidance=guidance, members={"m": first}, plain=True)
    passes: list[room.OnePass] = []
    monkeypatch.setattr(room.OnePass, "check", lambda self: passes.append(self))
    maps: list[weakref.ref[np.ndarray]] = []
    make = room.OnePass._made

    def made(self: room.OnePass, name: str) -> np.ndarray:
        passes.append(self)
        values = make(self, name)
        maps.append(weakref.ref(values))
        return values

    monkeypatch.setattr(room.OnePass, "_made", made)
    held: dict[str, list[object]] = {}
    for name in ("s/0", "s/1", "last/0"):
        ask._segmenters[name].network.register_forward_pre_hook(
            lambda *_, name=name: held.update({name: list(passes[0]._kept._values)})
        )
    ask(photo())
    assert len(maps) == 1 and maps[0]() is None, "the map of m was made once and is gone"
    kinds = {name: sorted({type(need).__name__ for need in needs}) for name, needs in held.items()}
    # The other second-layer network still needs the image with its guide (and the coarse map to paste into) …
    assert kinds["s/0"] == (["Prepared"] if region is None else ["MemberMap", "Prepared"])
    # … and when it runs nothing is held any more but what the last one needs, which is made when it is asked.
    assert kinds["s/1"] == kinds["last/0"] == []
    assert passes[-1]._kept._values == {}


def test_a_shared_node_is_held_as_one_map() -> None:
    """Folds that the tree and a member's map both need are held as their mean, not one by one."""
    networks, result, guidance, first = two_layers()
    ask = predictor(networks, result, guidance=guidance, members={"m": first})
    uses = ask._ensemble.uses(())
    assert uses[first] == 2 and uses[MemberMap("m")] == 1
    assert all(count == 1 for need, count in uses.items() if type(need).__name__ == "Leaf")


def test_taps_come_also_from_nodes_that_members_share() -> None:
    networks, _, guidance, first = two_layers()
    named = first.model_copy(update={"name": "first"})
    ask = predictor(networks, tree("s/0", named), guidance=guidance, members={"m": named})
    found = ask(photo())
    assert found.keys() == {"result", "first"}
    assert np.array_equal(found["first"], predictor(networks, first)(photo())["result"])


# --- mistakes


def test_mistakes_are_named_when_the_predictor_is_made() -> None:
    plain, second = segmenter(Constant(0.0)), segmenter(Channel(3), channels=4)
    with pytest.raises(UserError, match=r"unknown network 'm/fold1'; did you mean 'm/fold0'"):
        predictor({"m/fold0": plain}, tree("m/fold0", "m/fold1"))
    with pytest.raises(UserError, match=r"guidance: unknown network 'n/0'; did you mean 'm/0'"):
        predictor({"m/0": plain}, guidance={"n/0": guided("m")})
    with pytest.raises(UserError, match=r"unknown network 'm/1'; did you mean 'm/0'"):
        predictor({"m/0": plain, "s/0": second}, guidance={"s/0": guided("m")}, members={"m": tree("m/1")})
    with pytest.raises(UserError, match=r"s/0: expected a network of more than 4 channel\(s\)"):
        predictor({"s/0": second}, guidance={"s/0": guided("a", "b", "c", "d")})
    with pytest.raises(UserError, match=r"s/0: guidance.region expects a binary or multilabel task"):
        predictor({"s/0": segmenter(Constant(0.0, 0.0, 0.0), THREE)}, guidance={"s/0": guided(region=BOX)})


def test_members_that_wait_for_each_other_are_named() -> None:
    networks = {f"{name}/0": segmenter(Channel(3), channels=4) for name in "ab"}
    members = {name: tree(f"{name}/0") for name in "ab"}
    with pytest.raises(UserError, match=r"found a circle: b needs a needs b"):
        predictor(networks, tree("a/0"), guidance={"a/0": guided("b"), "b/0": guided("a")}, members=members)
    with pytest.raises(UserError, match=r"found a circle: a needs a"):
        predictor(networks, tree("a/0"), guidance={"a/0": guided("a")}, members=members)


def test_mistakes_are_named_when_an_image_comes() -> None:
    second = segmenter(Channel(3), channels=4)
    ask = predictor({"s/0": second}, guidance={"s/0": guided("coarse")}, members={"course": tree("s/0")})
    with pytest.raises(UserError, match=r"^coarse: expected its map to be given, .* did you mean 'course'"):
        ask(photo())
    with pytest.raises(UserError, match=r"^coarse: expected its map .* did you mean 'coarse2'"):
        ask(photo(), {"coarse2": blob()})
    with pytest.raises(UserError, match=r"^coarse: expected its given map as uint8 1×45×61 .*found uint8 1×45×60"):
        ask(photo(), {"coarse": blob()[..., :-1]})
    with pytest.raises(UserError, match=r"^coarse: expected its given map as uint8 .*found float32"):
        ask(photo(), {"coarse": blob().astype(np.float32)})
    with pytest.raises(UserError, match=r"^s/0: expected images of 3 channel\(s\) beside 1 of members' maps, found 1"):
        ask(photo()[..., :1], {"coarse": blob()})
    outside = predictor({"m/0": segmenter(Constant(0.0))}, tree("m/0", "outside"))
    with pytest.raises(UserError, match=r"^outside: expected its map to be given"):
        outside(photo())


def test_not_a_number_names_the_first_network_that_gave_it() -> None:
    networks = {"m/0": segmenter(Constant(float("nan"))), "s/0": segmenter(pointwise(channels=4), channels=4)}
    ask = predictor(networks, tree("s/0"), guidance={"s/0": guided("m")}, members={"m": tree("m/0")})
    with pytest.raises(UserError, match=r"^m/0: expected finite logits"):
        ask(photo())
    fine = predictor({"s/0": segmenter(Constant(float("nan")))}, guidance={"s/0": guided(region=BOX)})
    with pytest.raises(UserError, match=r"^s/0: expected finite logits"):
        fine(photo(), {"coarse": blob()})


def test_memory_running_out_asks_for_fewer_windows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Narrow(nn.Module):
        """Runs out of memory with more than 2 images."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(images) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return images[:, :1]

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    for policy in POLICIES:
        network, guidance = segmenter(Narrow(), **policy), {"s/0": guided(region=CONTOUR)}
        many = predictor({"s/0": network}, guidance=guidance, batch_pixels=10**6)(photo(), {"coarse": blob()})
        few = predictor({"s/0": network}, guidance=guidance, batch_pixels=1)(photo(), {"coarse": blob()})
        assert np.array_equal(many["result"], few["result"])
