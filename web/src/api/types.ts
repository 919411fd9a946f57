/** Where a search stands. */
export type SearchState =
  | "profiling"
  | "eliminating"
  | "searching"
  | "verifying"
  | "done"
  | "paused"
  | "cancelled"
  | "failed";
export type CandidateState = "proposed" | "evaluating" | "evaluated" | "infeasible" | "failed";
export type JobKind = "profile" | "evaluate" | "verify" | "lookup";
export type JobState = "queued" | "leased" | "succeeded" | "failed" | "cancelled";
export type ArtifactRole =
  | "weights"
  | "checkpoint"
  | "animation"
  | "sheet"
  | "curve"
  | "scores"
  | "log"
  | "table"
  | "base";

export interface Figure {
  value: number;
  standard_error?: number;
}
export type Metrics = Record<string, Figure>;

export interface Page<T> {
  items: T[];
  next_cursor?: string | null;
}

export interface RuntimeName {
  name: string;
  version: string;
}
export interface DeviceSeconds {
  train?: number;
  sample?: number;
  score?: number;
  profile?: number;
}
export interface Budget {
  evaluations: number;
  max_evaluations: number;
  device_hours: number;
  max_device_hours?: number | null;
  device_seconds: DeviceSeconds;
  stalled_evaluations: number;
  stall_limit?: number | null;
}
export interface EliminationView {
  removed: { position: string; choice: string; reason: string }[];
  architectures_before: string;
  architectures_after: string;
}
export interface ObjectiveView {
  metric: string;
  direction: string;
  range?: [number, number] | null;
}
export interface LimitView {
  metric: string;
  at_most: number;
}
export interface CalibrationView {
  metric: string;
  factor: number;
  offset: number;
  residual: number;
  architectures: number;
}
export interface SearchView {
  id: string;
  name: string;
  space_name: string;
  space: string;
  state: SearchState;
  paused_from?: SearchState | null;
  state_reason?: string | null;
  device?: string | null;
  runtime?: RuntimeName | null;
  strategy: string;
  seed: number;
  objectives: ObjectiveView[];
  limits: LimitView[];
  positions: string[];
  budget: Budget;
  hypervolume?: number | null;
  front_points: number;
  calibration?: CalibrationView[];
  last_event?: number;
  elimination?: EliminationView | null;
  created_at: string;
  ended_at?: string | null;
}
export interface ArtifactRef {
  role: ArtifactRole;
  digest: string;
  name: string;
  media_type: string;
  bytes: number;
}
export interface LayerView {
  position: string;
  choice: string;
}
export interface CandidateView {
  id: string;
  search_id: string;
  number: number;
  architecture: string;
  layers: LayerView[];
  state: CandidateState;
  state_reason?: string | null;
  reference?: string | null;
  parent?: number | null;
  action?: string | null;
  why?: string | null;
  predicted: Metrics;
  calibrated?: Metrics;
  measured: Metrics;
  verified: Metrics;
  evaluator?: string | null;
  on_front: boolean;
  job_id?: string | null;
  device_seconds?: DeviceSeconds | null;
  artifacts: ArtifactRef[];
  created_at: string;
  evaluated_at?: string | null;
}
export interface CurvePoint {
  step: number;
  loss: number;
}
export interface CandidateDetail extends CandidateView {
  curve: CurvePoint[];
}
export interface FrontPoint {
  candidate_id: string;
  number: number;
  architecture: string;
  reference?: string | null;
  metrics: Metrics;
  calibrated?: Metrics;
  verified: Metrics;
  verified_within_limits?: boolean | null;
}
export interface HypervolumePoint {
  evaluations: number;
  device_hours: number;
  hypervolume: number;
}
export interface FrontView {
  search_id: string;
  objectives: ObjectiveView[];
  limits: LimitView[];
  points: FrontPoint[];
  references: CandidateView[];
  history: HypervolumePoint[];
}
export interface AttemptView {
  attempt: number;
  worker_id?: string | null;
  started_at: string;
  ended_at?: string | null;
  error?: string | null;
  log?: string | null;
}
export interface JobView {
  id: string;
  kind: JobKind;
  state: JobState;
  search_id?: string | null;
  candidate_id?: string | null;
  device?: string | null;
  worker_id?: string | null;
  progress: number;
  status?: string | null;
  created_at: string;
  ended_at?: string | null;
  attempts: AttemptView[];
  device_seconds?: DeviceSeconds | null;
}
export type EventBody =
  | { type: "search_state"; state: SearchState; reason?: string | null }
  | { type: "candidate"; candidate: CandidateView }
  | { type: "front"; evaluations: number; hypervolume: number; points: FrontPoint[] }
  | {
      type: "job";
      job_id: string;
      kind: JobKind;
      state: JobState;
      candidate_id?: string | null;
      progress: number;
      status?: string | null;
      curve?: CurvePoint[];
    };
export interface Event {
  sequence: number;
  at: string;
  body: EventBody;
}
export interface ProblemDocument {
  type: string;
  title: string;
  status: number;
  detail?: string | null;
  errors?: { field: string; line?: number | null; column?: number | null; message: string }[];
}
