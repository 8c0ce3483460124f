"""Runs on machines of others: Cloud TPUs, GKE, Vertex AI and Slurm; a file a platform, which `mvlm launch` calls.

Python rather than shell scripts: a program is started from a list of words, so that no argument is ever read by a shell
by accident; manifests are dumped by a library, so that they cannot be broken by a quote; the config is checked before
anything is paid for; and the same tests that run everywhere see each command line, failure and dry run. Where a shell
does read words, in a startup or batch script, each goes through `shlex.quote`.

A platform has `define_flags`, its own flags, and `VERBS`, what can be done there. None of them reads an environment
variable or keeps a secret: the tools of the provider (gcloud, kubectl, sbatch) log in as they always do.
"""
