pub mod embedded;
pub mod topic;
