//! Deployments and ablations.

use protocol::{
    AblationId, CandidateId, DeploymentId, JobId,
    ablations::{AblationView, NewAblation},
    deployments::{DeploymentView, NewDeployment},
    jobs::JobResult,
};
use reqwest::Method;

use super::{Client, ClientError, expand};

impl Client {
    /// The candidate of an id, or of a search and a number as `SEARCH/NUMBER`.
    ///
    /// # Errors
    /// When there is none, or the coordinator cannot be reached.
    pub async fn find_candidate(&self, text: &str) -> Result<CandidateId, ClientError> {
        if let Ok(id) = text.parse() {
            return Ok(id);
        }
        let wrong = || {
            ClientError::Id(format!(
                "`{text}` is no candidate: give its id, or search and number as SEARCH/NUMBER"
            ))
        };
        let (search, number) = text.split_once('/').ok_or_else(wrong)?;
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let search = self.find_search(search).await?;
        let candidates = self.candidates(search).await?;
        let found = candidates.into_iter().find(|candidate| candidate.number == number);
        let found = found.ok_or_else(|| ClientError::Id(format!("search {search} has no candidate {number}")))?;
        Ok(found.id)
    }

    /// What a job found.
    ///
    /// # Errors
    /// When there is none, it has found nothing yet, or the coordinator cannot be reached.
    pub async fn result(&self, id: JobId) -> Result<JobResult, ClientError> {
        let job = self.job(id).await?;
        let state = job.state.as_str();
        job.result
            .ok_or_else(|| ClientError::Id(format!("job {id} is {state} and has found nothing yet")))
    }

    /// Asks for a deployment; with the same id again it answers with the same one.
    ///
    /// # Errors
    /// When the coordinator refuses or cannot be reached.
    pub async fn deploy(&self, new: &NewDeployment) -> Result<DeploymentView, ClientError> {
        self.retry(|| self.request(Method::POST, "/v1/deployments").json(new))
            .await
    }

    /// One deployment.
    ///
    /// # Errors
    /// When there is none, or the coordinator cannot be reached.
    pub async fn deployment(&self, id: DeploymentId) -> Result<DeploymentView, ClientError> {
        self.get(&format!("/v1/deployments/{id}")).await
    }

    /// Deployments, oldest first; those that are cells of ablations only where they are asked for.
    ///
    /// # Errors
    /// When the coordinator refuses or cannot be reached.
    pub async fn deployments(&self, cells: bool) -> Result<Vec<DeploymentView>, ClientError> {
        let cells = if cells { "true" } else { "false" };
        self.list("/v1/deployments", &[("cells", cells)]).await
    }

    /// The deployment whose id begins or ends with `text`.
    ///
    /// # Errors
    /// When none or several do, or the coordinator cannot be reached.
    pub async fn find_deployment(&self, text: &str) -> Result<DeploymentId, ClientError> {
        if let Ok(id) = text.parse() {
            return Ok(id);
        }
        let all = self.deployments(true).await?;
        let ids: Vec<DeploymentId> = all.into_iter().map(|deployment| deployment.id).collect();
        expand(text, "deployment", &ids)
    }

    /// `cancel` or `retry`.
    ///
    /// # Errors
    /// When the deployment's state does not allow it, or the coordinator cannot be reached.
    pub async fn steer_deployment(&self, id: DeploymentId, what: &str) -> Result<DeploymentView, ClientError> {
        self.retry(|| self.request(Method::POST, &format!("/v1/deployments/{id}/{what}")))
            .await
    }

    /// A deployment's report, an HTML page.
    ///
    /// # Errors
    /// When there is none, or the coordinator cannot be reached.
    pub async fn report(&self, id: DeploymentId) -> Result<Vec<u8>, ClientError> {
        let bytes = self.bytes(&format!("/v1/deployments/{id}/report"), &[]).await?;
        Ok(bytes.to_vec())
    }

    /// Asks for an ablation; with the same id again it answers with the same one.
    ///
    /// # Errors
    /// When the coordinator refuses or cannot be reached.
    pub async fn ablate(&self, new: &NewAblation) -> Result<AblationView, ClientError> {
        self.retry(|| self.request(Method::POST, "/v1/ablations").json(new))
            .await
    }

    /// One ablation with its table as far as it is known.
    ///
    /// # Errors
    /// When there is none, or the coordinator cannot be reached.
    pub async fn ablation(&self, id: AblationId) -> Result<AblationView, ClientError> {
        self.get(&format!("/v1/ablations/{id}")).await
    }

    /// The ablation whose id begins or ends with `text`.
    ///
    /// # Errors
    /// When none or several do, or the coordinator cannot be reached.
    pub async fn find_ablation(&self, text: &str) -> Result<AblationId, ClientError> {
        if let Ok(id) = text.parse() {
            return Ok(id);
        }
        let all: Vec<AblationView> = self.list("/v1/ablations", &[]).await?;
        let ids: Vec<AblationId> = all.into_iter().map(|ablation| ablation.id).collect();
        expand(text, "ablation", &ids)
    }

    /// `cancel` or `retry`.
    ///
    /// # Errors
    /// When there is none, or the coordinator cannot be reached.
    pub async fn steer_ablation(&self, id: AblationId, what: &str) -> Result<AblationView, ClientError> {
        self.retry(|| self.request(Method::POST, &format!("/v1/ablations/{id}/{what}")))
            .await
    }
}
