queen {
  heartbeat {
    interval = "10s"
  }
  detection {
    suspect = "5s"
  }
}
