"""Contributions in, one safetensors file out: plan, stream in worker processes, write atomically, account.

Start reading at ``run.run_job``. ``plan.build_job`` turns a policy and the contributions that count into a
job, for the daemon and for offline ``merge`` alike, which is why both write the same bytes.
"""
