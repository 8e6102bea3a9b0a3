agent {
  name = "tower
}
