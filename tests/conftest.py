"""What every test starts from."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: the tool's children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
