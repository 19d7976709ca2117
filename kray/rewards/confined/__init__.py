"""The part of the code verifier that runs inside the sandbox: a folder run as a program of its own, standard library only.

`__main__` restricts its own process (`restrictions`, `seccomp`, `landlock`) and then runs one untrusted program. It is
started by kray.rewards.sandbox and imports nothing of kray.
"""
