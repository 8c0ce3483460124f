"""What Kubernetes and the JobSet controller do when the pods of a JobSet end, with a process in place of each pod.

The rules are those of these pages, read in November 2026; only what decides about failures and restarts is here.

- Kubernetes 1.31 and later, in which pod failure policies are stable: "Pod failure policy" and "Pod backoff failure
  policy" of https://kubernetes.io/docs/concepts/workloads/controllers/job/, and "Pod disruption conditions" of
  https://kubernetes.io/docs/concepts/workloads/pods/disruptions/. The rules of a policy are tried in order, and the
  first that matches a failed pod decides: FailJob ends the job with the reason PodFailurePolicy, Ignore replaces the
  pod, Count counts it. Exit code 0 matches nothing. A pod that no rule matches is counted. More counted pods than
  backoffLimit end the job with the reason BackoffLimitExceeded. A job that has failed terminates its other pods. A pod
  that is evicted, drained or preempted has the condition DisruptionTarget; it gets SIGTERM, and SIGKILL after
  terminationGracePeriodSeconds.
- JobSet, page of July 2025: https://jobset.sigs.k8s.io/docs/tasks/failure_policy/. The rules are tried in order, and
  the first that matches a failed job decides: FailJobSet, RestartJobSet, which counts towards maxRestarts, or
  RestartJobSetAndIgnoreMaxRestarts. Without a match it is RestartJobSet; without a policy the set fails. A restart
  deletes all jobs and makes them again (restartStrategy Recreate, the default).
"""

import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

DISRUPTION = "DisruptionTarget"
Manifest = Mapping[str, Any]


class Process(Protocol):
    """As `subprocess.Popen`."""

    def poll(self) -> int | None: ...

    def send_signal(self, number: int) -> None: ...

    def wait(self, timeout: float | None = None) -> int: ...


class Pod:
    """
    Attributes:
      index: of its completion.
      conditions: those that are true.
    """

    def __init__(self, process: Process, *, container: str, index: int, grace_seconds: float):
        self.process = process
        self.container = container
        self.index = index
        self.grace_seconds = grace_seconds
        self.conditions: set[str] = set()

    def exit_code(self) -> int | None:
        """As the container runtime reports it: 128 and its number where a signal has ended the process."""
        status = self.process.poll()
        return 128 - status if status is not None and status < 0 else status

    def disrupt(self) -> None:
        """What happens to a pod whose node is taken away."""
        self.conditions.add(DISRUPTION)
        self.terminate()

    def terminate(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        self.terminate()
        try:
            self.process.wait(timeout=self.grace_seconds)
        except TimeoutError:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


Start = Callable[[Sequence[str], int], Process]  # (the words of the container, its index) -> its process
Watch = Callable[[Sequence[Pod], int], None]  # (the pods that are there, restarts so far)


class Job:
    """An indexed job."""

    def __init__(self, spec: Manifest, *, start: Start):
        assert spec["completionMode"] == "Indexed" and spec["template"]["spec"]["restartPolicy"] == "Never"
        self._spec = spec
        self._start = start
        self._succeeded: set[int] = set()
        self._counted = 0
        self.pods = [self._pod(index) for index in range(spec["completions"])]
        self.ended: str | None = None  # Complete, or the reason of the failure

    def sync(self) -> None:
        """Looks at the pods that have ended since."""
        for pod in [pod for pod in self.pods if pod.exit_code() is not None]:
            self.pods.remove(pod)
            if pod.exit_code() == 0:
                self._succeeded.add(pod.index)
                continue
            action = self._action(pod)
            if action == "FailJob":
                self.ended = "PodFailurePolicy"
                return
            self._counted += action == "Count"
            if self._counted > self._spec["backoffLimit"]:
                self.ended = "BackoffLimitExceeded"
                return
            self.pods.append(self._pod(pod.index))
        if len(self._succeeded) == self._spec["completions"]:
            self.ended = "Complete"

    def terminate(self) -> None:
        for pod in self.pods:
            pod.terminate()
        for pod in self.pods:
            pod.end()

    def _action(self, pod: Pod) -> str:
        for rule in self._spec.get("podFailurePolicy", {}).get("rules", []):
            if _matches(rule, pod):
                return rule["action"]
        return "Count"

    def _pod(self, index: int) -> Pod:
        spec = self._spec["template"]["spec"]
        [container] = spec["containers"]
        words = [_expanded(word, {"JOB_COMPLETION_INDEX": str(index)}) for word in container["command"]]
        grace = spec["terminationGracePeriodSeconds"]
        return Pod(self._start(words, index), container=container["name"], index=index, grace_seconds=grace)


def _matches(rule: Manifest, pod: Pod) -> bool:
    codes = rule.get("onExitCodes")
    if codes is None:
        return any(each["type"] in pod.conditions and each["status"] == "True" for each in rule["onPodConditions"])
    if pod.exit_code() == 0 or codes.get("containerName", pod.container) != pod.container:
        return False
    return (pod.exit_code() in codes["values"]) == (codes["operator"] == "In")


def run_jobset(manifest: Manifest, *, start: Start, watch: Watch = lambda pods, restarts: None) -> tuple[str, int]:
    """Runs a JobSet until it ends: (Completed or Failed, how often its jobs were made).

    Args:
      watch: called between what the controllers do.
    """
    spec = manifest["spec"]
    policy = spec.get("failurePolicy")
    restarts = counted = 0
    while True:
        jobs = [
            Job(replicated["template"]["spec"], start=start)
            for replicated in spec["replicatedJobs"]
            for _ in range(replicated["replicas"])
        ]
        try:
            while not any(job.ended not in (None, "Complete") for job in jobs):
                if all(job.ended == "Complete" for job in jobs):
                    return "Completed", restarts + 1
                watch([pod for job in jobs for pod in job.pods], restarts)
                for job in jobs:
                    if job.ended is None:
                        job.sync()
                time.sleep(0.01)
        finally:
            for job in jobs:
                job.terminate()
        reasons = [job.ended for job in jobs if job.ended not in (None, "Complete")]
        action = _jobset_action(policy, reasons) if policy else "FailJobSet"
        if action == "FailJobSet" or action == "RestartJobSet" and counted >= policy["maxRestarts"]:
            return "Failed", restarts + 1
        restarts += 1
        counted += action == "RestartJobSet"


def _jobset_action(policy: Manifest, reasons: Sequence[str]) -> str:
    for rule in policy.get("rules", []):
        assert "targetReplicatedJobs" not in rule
        if any(not rule.get("onJobFailureReasons") or reason in rule["onJobFailureReasons"] for reason in reasons):
            return rule["action"]
    return "RestartJobSet"


def _expanded(word: str, variables: Mapping[str, str]) -> str:
    """`$(NAME)` is the variable, `$$` a dollar sign."""
    return re.sub(
        r"\$(\$|\((\w+)\))", lambda found: "$" if found[1] == "$" else variables.get(found[2], found[0]), word
    )
