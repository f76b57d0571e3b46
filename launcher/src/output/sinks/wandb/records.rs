//! The records of W&B's transaction log: the part of wandb/proto/wandb_internal.proto that is used here.

use prost::{Message, Oneof};

/// One record.
#[derive(Clone, PartialEq, Message)]
pub struct Record {
    /// Its number, from 1.
    #[prost(int64, tag = "1")]
    pub num: i64,
    /// What it is.
    #[prost(oneof = "Body", tags = "2, 3, 5, 7, 12, 17, 18, 21")]
    pub body: Option<Body>,
}

/// The kinds of records.
#[derive(Clone, PartialEq, Oneof)]
pub enum Body {
    /// A row.
    #[prost(message, tag = "2")]
    History(History),
    /// The latest values.
    #[prost(message, tag = "3")]
    Summary(Items),
    /// The run's configuration.
    #[prost(message, tag = "5")]
    Config(Items),
    /// Of the machine at a moment.
    #[prost(message, tag = "7")]
    Stats(Stats),
    /// How a metric is shown.
    #[prost(message, tag = "12")]
    Metric(Metric),
    /// The run.
    #[prost(message, tag = "17")]
    Run(Run),
    /// Its end.
    #[prost(message, tag = "18")]
    Exit(Exit),
    /// The log's own.
    #[prost(message, tag = "21")]
    Header(Header),
}

/// A key and its value as JSON. Rows have their key in `nested_key`, so that a slash in it is no level.
#[derive(Clone, PartialEq, Message)]
pub struct Item {
    /// The key of all but rows.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The key of a row's value.
    #[prost(string, repeated, tag = "2")]
    pub nested_key: Vec<String>,
    /// JSON, in which NaN, Infinity and -Infinity may stand too.
    #[prost(string, tag = "16")]
    pub value_json: String,
}

/// A row.
#[derive(Clone, PartialEq, Message)]
pub struct History {
    /// Its values.
    #[prost(message, repeated, tag = "1")]
    pub item: Vec<Item>,
    /// Its number among rows.
    #[prost(message, optional, tag = "2")]
    pub step: Option<Step>,
}

/// A row's number.
#[derive(Clone, PartialEq, Message)]
pub struct Step {
    /// From 0.
    #[prost(int64, tag = "1")]
    pub num: i64,
}

/// Keys that get new values, of the configuration or the summary.
#[derive(Clone, PartialEq, Message)]
pub struct Items {
    /// They.
    #[prost(message, repeated, tag = "1")]
    pub update: Vec<Item>,
}

/// Of the machine at a moment.
#[derive(Clone, PartialEq, Message)]
pub struct Stats {
    /// When.
    #[prost(message, optional, tag = "2")]
    pub timestamp: Option<Timestamp>,
    /// What.
    #[prost(message, repeated, tag = "3")]
    pub item: Vec<StatsItem>,
}

/// A value of the machine's.
#[derive(Clone, PartialEq, Message)]
pub struct StatsItem {
    /// Its name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// JSON.
    #[prost(string, tag = "16")]
    pub value_json: String,
}

/// A moment.
#[derive(Clone, PartialEq, Message)]
pub struct Timestamp {
    /// Since 1970.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// And of the second.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// How a metric is shown.
#[derive(Clone, PartialEq, Message)]
pub struct Metric {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Or that of several, with a star.
    #[prost(string, tag = "2")]
    pub glob_name: String,
    /// The metric that they are drawn over.
    #[prost(string, tag = "4")]
    pub step_metric: String,
    /// Options.
    #[prost(message, optional, tag = "6")]
    pub options: Option<MetricOptions>,
}

/// Options of a metric.
#[derive(Clone, PartialEq, Message)]
pub struct MetricOptions {
    /// Rows without the step metric get its latest value.
    #[prost(bool, tag = "1")]
    pub step_sync: bool,
    /// The user has said so.
    #[prost(bool, tag = "3")]
    pub defined: bool,
}

/// The run.
#[derive(Clone, PartialEq, Message)]
pub struct Run {
    /// Eight letters and digits.
    #[prost(string, tag = "1")]
    pub run_id: String,
    /// User or team; empty: the default one of whoever sends it.
    #[prost(string, tag = "2")]
    pub entity: String,
    /// Project.
    #[prost(string, tag = "3")]
    pub project: String,
    /// Group.
    #[prost(string, tag = "6")]
    pub run_group: String,
    /// Name.
    #[prost(string, tag = "8")]
    pub display_name: String,
    /// Tags.
    #[prost(string, repeated, tag = "10")]
    pub tags: Vec<String>,
    /// This machine.
    #[prost(string, tag = "13")]
    pub host: String,
    /// When it began.
    #[prost(message, optional, tag = "17")]
    pub start_time: Option<Timestamp>,
}

/// The end.
#[derive(Clone, PartialEq, Message)]
pub struct Exit {
    /// Of the job.
    #[prost(int32, tag = "1")]
    pub exit_code: i32,
    /// Seconds.
    #[prost(int32, tag = "2")]
    pub runtime: i32,
}

/// The log's own.
#[derive(Clone, PartialEq, Message)]
pub struct Header {
    /// Versions.
    #[prost(message, optional, tag = "1")]
    pub version_info: Option<VersionInfo>,
}

/// Versions.
#[derive(Clone, PartialEq, Message)]
pub struct VersionInfo {
    /// Who writes.
    #[prost(string, tag = "1")]
    pub producer: String,
    /// The oldest release of wandb that can read it.
    #[prost(string, tag = "2")]
    pub min_consumer: String,
}
