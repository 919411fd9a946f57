/** The wire, generated from the coordinator's OpenAPI document by `npm run types`, under short names. */
import type { components } from "./schema";

type Schemas = components["schemas"];

export type ArtifactRef = Schemas["ArtifactRef"];
export type ArtifactRole = Schemas["ArtifactRole"];
export type CalibrationView = Schemas["CalibrationView"];
export type CandidateDetail = Schemas["CandidateDetail"];
export type CandidateState = Schemas["CandidateState"];
export type CandidateView = Schemas["CandidateView"];
export type CurvePoint = Schemas["CurvePoint"];
export type EliminationView = Schemas["EliminationView"];
export type Event = Schemas["Event"];
export type EventBody = Schemas["EventBody"];
export type Figure = Schemas["Figure"];
export type FrontPoint = Schemas["FrontPoint"];
export type FrontView = Schemas["FrontView"];
export type JobState = Schemas["JobState"];
export type JobView = Schemas["JobView"];
export type LayerView = Schemas["LayerView"];
export type LimitView = Schemas["LimitView"];
export type ObjectiveView = Schemas["ObjectiveView"];
export type ProblemDocument = Schemas["ProblemDocument"];
export type SearchState = Schemas["SearchState"];
export type SearchView = Schemas["SearchView"];

/** Figures by metric. */
export type Metrics = CandidateView["predicted"];

/** One page of a list. */
export interface Page<T> {
  items: T[];
  next_cursor?: string | null;
}
