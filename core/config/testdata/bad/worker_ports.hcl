queen {
  listen = "127.0.0.1:7855"
}

hive {
  listen       = "127.0.0.1:8000"
  worker_ports = "7850-8100"
}
