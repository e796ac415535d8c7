"""The vocabulary of entries: every type by its name. What their bodies hold stands beside, by subject."""

from __future__ import annotations

from appliance.domain.event import Endorsed, Event, Ordered
from appliance.domain.governing_events import (
    Administrator,
    AuthRefused,
    CheckpointCosigned,
    Heartbeat,
    HoldLifted,
    HoldPlaced,
    Initialized,
    KeyEnrolled,
    KeyRevoked,
    LogKeyRotated,
    OrderPending,
    OrderRefused,
    PolicyAdopted,
    PrincipalEnrolled,
    PrincipalRevoked,
    RoleGranted,
    ServiceStarted,
    ServiceStopped,
    SessionOpened,
    TextErased,
    TokensRevoked,
)
from appliance.domain.making_events import (
    AdapterQuarantined,
    AdapterRevoked,
    AdapterSealed,
    ArtifactsChecked,
    BaseImported,
    BaseQuarantined,
    BaseRevoked,
    DatasetImported,
    DatasetRevoked,
    ImportCancelled,
    ImportFailed,
    ImportRequested,
    ReplayFailed,
    ReplayFinished,
    ReplayRequested,
    ResumeRequested,
    ReviewRecorded,
    RunCancelled,
    RunCheckpointed,
    RunFailed,
    RunFinished,
    RunRequested,
    RunResumed,
    RunStarted,
)
from appliance.domain.serving_events import (
    AdapterAdmitted,
    AdapterExported,
    AdapterLoaded,
    AdapterUnloaded,
    AdmissionRefused,
    ReleaseActivated,
    ReleaseRolledBack,
    RequestAdmitted,
    RequestFinished,
    RequestRefused,
)

EVENTS: dict[str, type[Event]] = {
    model.type: model
    for model in (
        Initialized, ServiceStarted, ServiceStopped, Heartbeat, SessionOpened, AuthRefused, OrderRefused, OrderPending,
        PrincipalEnrolled, RoleGranted, PrincipalRevoked, PolicyAdopted, ImportRequested, ImportFailed, ImportCancelled,
        BaseImported, DatasetImported, RunRequested, RunStarted, RunFinished, RunFailed, RunCancelled, AdapterSealed,
        AdapterQuarantined, BaseQuarantined, ReviewRecorded, ReleaseActivated, ReleaseRolledBack, AdapterRevoked,
        AdapterAdmitted, AdmissionRefused, AdapterLoaded, AdapterUnloaded, RequestAdmitted, RequestFinished,
        RequestRefused, KeyEnrolled, KeyRevoked, LogKeyRotated, TextErased, HoldPlaced, HoldLifted, CheckpointCosigned,
        RunCheckpointed, ResumeRequested, RunResumed, ReplayRequested, ReplayFinished, ReplayFailed,
        TokensRevoked,
        BaseRevoked, DatasetRevoked, ArtifactsChecked, AdapterExported,
    )
}  # fmt: skip

__all__ = [
    "EVENTS", "AdapterAdmitted", "AdapterExported", "AdapterLoaded", "AdapterQuarantined", "AdapterRevoked",
    "AdapterSealed", "AdapterUnloaded", "Administrator", "AdmissionRefused", "ArtifactsChecked", "AuthRefused",
    "BaseImported", "BaseQuarantined", "BaseRevoked", "CheckpointCosigned", "DatasetImported", "DatasetRevoked",
    "Endorsed", "Event", "Heartbeat", "HoldLifted", "HoldPlaced", "ImportCancelled", "ImportFailed",
    "ImportRequested", "Initialized", "KeyEnrolled", "KeyRevoked", "LogKeyRotated", "OrderPending", "OrderRefused",
    "Ordered", "PolicyAdopted", "PrincipalEnrolled", "PrincipalRevoked", "ReleaseActivated", "ReleaseRolledBack",
    "ReplayFailed", "ReplayFinished", "ReplayRequested", "RequestAdmitted", "RequestFinished", "RequestRefused",
    "ResumeRequested", "ReviewRecorded", "RoleGranted", "RunCancelled", "RunCheckpointed", "RunFailed",
    "RunFinished", "RunRequested", "RunResumed", "RunStarted", "ServiceStarted", "ServiceStopped", "SessionOpened",
    "TextErased", "TokensRevoked",
]  # fmt: skip
