// Certificates made for one test by the script that users have.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "tests/support/temp_folder.h"

namespace glm::test {

/// Runs deploy/make_certificates.sh: `specs` as its words after the folder, "worker=127.0.0.1".
inline void MakeCertificates(const std::string& folder, const std::string& specs) {
  const std::string command =
      std::string(GLM_SOURCE_DIR) + "/deploy/make_certificates.sh " + folder + " " + specs;
  ASSERT_EQ(std::system(command.c_str()), 0) << command;
}

}  // namespace glm::test
