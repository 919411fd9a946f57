import { describe, expect, it } from "vitest";
import { choicesOf, lookOf, unetLevels, unetPlace } from "./operators";

describe("a choice", () => {
  it("is read with its operator, dimensions and depth", () => {
    expect(lookOf("Conv1D ×2", [])).toMatchObject({ family: "conv", solid: false, depth: 2, short: "C1" });
    expect(lookOf("SelfAttention3D", [])).toMatchObject({ family: "self", solid: true, depth: 1, short: "S3" });
    expect(lookOf("cross_attention1d", [])).toMatchObject({ family: "cross", solid: false, short: "X1" });
  });

  it("may be none", () => {
    expect(lookOf("none", [])).toMatchObject({ family: "none", depth: 0 });
  });

  it("of another space keeps its own name", () => {
    expect(lookOf("nor_conv_3x3", [])).toMatchObject({ family: "other", short: "n3" });
    expect(lookOf("MB6_K5", [])).toMatchObject({ family: "other", short: "M6" });
    expect(lookOf("2", [])).toMatchObject({ family: "other", short: "2" });
  });
});

describe("choices of another space", () => {
  const architecture = (...choices: string[]) => ({ layers: choices.map((choice) => ({ choice })) });

  it("are told apart by hue", () => {
    const choices = choicesOf([architecture("wide", "none"), architecture("narrow", "wide", "Conv1D")]);
    expect(choices).toEqual(["narrow", "wide"]);
    expect(choices.map((choice) => lookOf(choice, choices).hue)).toEqual([0, 1]);
  });
});

describe("a UNet", () => {
  const layer = (position: string) => ({ position, choice: "none" });

  it("has places down, in the middle and up", () => {
    expect(unetPlace("down.1")).toEqual({ side: "down", level: 1 });
    expect(unetPlace("mid")).toEqual({ side: "mid" });
    expect(unetPlace("layer.0")).toBeNull();
  });

  it("comes up at the level at which it went down", () => {
    const drawn = unetLevels(["down.0", "down.1", "mid", "up.0", "up.1"].map(layer));
    expect(drawn?.levels.map(({ down, up }) => [down?.position, up?.position])).toEqual([
      ["down.0", "up.1"],
      ["down.1", "up.0"],
    ]);
    expect(drawn?.mid?.position).toBe("mid");
  });

  it("is not seen in the positions of another space", () => {
    expect(unetLevels(["layer.0", "layer.1"].map(layer))).toBeNull();
  });
});
